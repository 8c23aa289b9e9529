process DISCERN_PROCESS {
    tag "$meta.id"
    label 'process_medium'

    conda "${moduleDir}/environment.yml"
    container "${ workflow.containerEngine in ['singularity', 'apptainer'] && !task.ext.singularity_pull_docker_container ?
        'https://depot.galaxyproject.org/singularity/discern-scrna:2.0.0--pyhdfd78af_0':
        'quay.io/biocontainers/discern-scrna:2.0.0--pyhdfd78af_0' }"

    input:
    tuple val(meta), path(parameters, stageAs: "given/*"), path(cells)

    output:
    tuple val(meta), path("${prefix}"), emit: experiment
    tuple val("${task.process}"), val('discern'), eval("discern --version | sed 's/.* //'"), topic: versions, emit: versions_discern

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    def args2 = task.ext.args2 ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    export MPLCONFIGDIR=\$PWD/.cache/matplotlib NUMBA_CACHE_DIR=\$PWD/.cache/numba XDG_CACHE_HOME=\$PWD/.cache

    if [ -n "${parameters}" ]; then
        cp -L ${parameters} parameters.json
    else
        discern init ${args2} --output parameters.json ${cells}
    fi
    discern process ${args} parameters.json
    mv experiments/* ${prefix}
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    mkdir ${prefix}
    touch ${prefix}/parameters.json
    """
}

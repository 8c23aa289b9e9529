process DISCERN_TRAIN {
    tag "$meta.id"
    label 'process_high'

    conda "${moduleDir}/environment.yml"
    container "${ workflow.containerEngine in ['singularity', 'apptainer'] && !task.ext.singularity_pull_docker_container ?
        'https://depot.galaxyproject.org/singularity/discern-scrna:2.0.0--pyhdfd78af_0':
        'quay.io/biocontainers/discern-scrna:2.0.0--pyhdfd78af_0' }"

    input:
    tuple val(meta), path(experiment, stageAs: "given/*")

    output:
    tuple val(meta), path("${prefix}"), emit: experiment
    tuple val("${task.process}"), val('discern'), eval("discern --version | sed 's/.* //'"), topic: versions, emit: versions_discern

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    export MPLCONFIGDIR=\$PWD/.cache/matplotlib NUMBA_CACHE_DIR=\$PWD/.cache/numba XDG_CACHE_HOME=\$PWD/.cache

    cp -rL ${experiment} ${prefix}
    discern train ${args} ${prefix}/parameters.json
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    mkdir -p ${prefix}/job
    touch ${prefix}/parameters.json
    """
}

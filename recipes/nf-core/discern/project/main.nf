process DISCERN_PROJECT {
    tag "$meta.id"
    label 'process_medium'

    conda "${moduleDir}/environment.yml"
    container "${ workflow.containerEngine in ['singularity', 'apptainer'] && !task.ext.singularity_pull_docker_container ?
        'https://depot.galaxyproject.org/singularity/discern-scrna:2.0.0--pyhdfd78af_0':
        'quay.io/biocontainers/discern-scrna:2.0.0--pyhdfd78af_0' }"

    input:
    tuple val(meta), path(experiment, stageAs: "given/*")

    output:
    tuple val(meta), path("${prefix}/projected/*.h5ad"), emit: h5ad
    tuple val("${task.process}"), val('discern'), eval("discern --version | sed 's/.* //'"), topic: versions, emit: versions_discern

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    export MPLCONFIGDIR=\$PWD/.cache/matplotlib NUMBA_CACHE_DIR=\$PWD/.cache/numba XDG_CACHE_HOME=\$PWD/.cache

    cp -rL ${experiment} ${prefix}
    discern project ${args} ${prefix}/parameters.json
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    mkdir -p ${prefix}/projected
    touch ${prefix}/projected/projected_to_average_batch_a.h5ad
    """
}

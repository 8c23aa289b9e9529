"""The main job on the cells that ship with DISCERN: Drop-seq cells reconstructed as CEL-seq2."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from discern.data.components import PrincipalComponents
from discern.datasets import demo_parameters, lung_cell_lines
from discern.folder.layout import ExperimentFolder
from discern.metrics.gene_agreement import GroupStatistics, agreement
from discern.model.targets import reference_file_name
from discern.plots.colours import STAGES
from discern.plots.figures import EACH_ITS_OWN, plot_means, plot_umaps, umap_coordinates
from discern.runtime.atomic import refuse_link, replacing
from discern.runtime.devices import available_cpus

if TYPE_CHECKING:
    from pathlib import Path

    import anndata


SOURCE, REFERENCE = "dropseq", "celseq2"


def write_demo_inputs(output: Path) -> Path:
    """Put the shipped cells and a parameters.json for them into a folder, as a user would.

    Args:
        output: The folder.

    Returns:
        The parameters file; its paths are below `output`.
    """
    data = output / "data"
    refuse_link(data)
    parameters = json.loads(demo_parameters().read_text())
    for path in lung_cell_lines().values():
        with replacing(data / path.name) as partial:
            shutil.copyfile(path, partial)
    parameters["exp_param"]["experiments_dir"] = str(output / "experiments")
    for experiment in parameters["experiments"].values():
        experiment["input_ds"]["raw_input"] = [str(output / file) for file in experiment["input_ds"]["raw_input"]]
        for section, key in (("input_ds", "n_cpus_preprocessing"), ("training", "parallel_pc")):
            experiment[section][key] = min(experiment[section][key], available_cpus())
    file = ExperimentFolder(output).parameters
    with replacing(file) as partial:
        partial.write_text(json.dumps(parameters, indent=4))
    return file


def run_demo(output: Path) -> str:
    """Process, train and project the shipped cells, and compare the result with the real CEL-seq2 cells.

    Args:
        output: Folder for parameters, data, experiment and pictures.

    Returns:
        The comparison with all CEL-seq2 cells, and the evaluation on those that training did not see, as text.
    """
    from discern.config.reading import load_parameters
    from discern.evaluation.results import EvaluationResult, summary
    from discern.experiment.evaluate import evaluate
    from discern.experiment.process import process
    from discern.experiment.project import run_projection
    from discern.experiment.runner import DISCERNRunner
    from discern.experiment.train import run_train

    file = write_demo_inputs(output)
    parameters = load_parameters(file)
    (name,) = parameters.experiments
    processed = process(parameters, force=True)[name]
    if isinstance(processed, Exception):
        raise processed
    runner = DISCERNRunner(debug=True)  # lets an error pass
    runner(run_train, parameters)
    target = {"reference": REFERENCE, "metadata": (), "infile": None, "all_batches": False, "store_sigmas": False}
    runner(run_projection, parameters, target)
    report, figures_file, *_ = evaluate(parameters.folder(name), REFERENCE, [SOURCE], "celltype")
    result = EvaluationResult.from_json(json.loads(figures_file.read_text()))
    return f"{compare(parameters.folder(name), output)}\n\n{summary(result)}\nreport: {report}"


def compare(experiment: Path, output: Path) -> str:
    """Compare projected Drop-seq cells with real CEL-seq2 cells and draw the pictures.

    (a) is the mean over cell lines of the Pearson correlation, over genes, of mean log-normalised expression; (b) the
    mean over pairs of lines of the correlation of the differences of those means.

    Args:
        experiment: The experiment's folder, with its projection.
        output: Folder for the pictures.

    Returns:
        A table of (a) and (b) before and after.
    """
    from discern.data.processed import DISCERNData

    before = DISCERNData.from_folder(experiment, batch_size=192)
    after = _read(ExperimentFolder(experiment).projected / reference_file_name(REFERENCE))
    source = (before.obs["batch"] == SOURCE).to_numpy()
    lines = before.obs["celltype"].astype(str)
    real = GroupStatistics.of(before.X[~source], lines[~source])
    candidates = {
        "before (Drop-seq as measured)": before.X,
        "after, X (sampled)": after.X,
        "after, estimated_counts": after.layers["estimated_counts"],
    }
    ours = {name: GroupStatistics.of(values[source], lines[source]) for name, values in candidates.items()}
    text = [f"{'Drop-seq cells against real CEL-seq2 cells':44}  (a) means  (b) differences"]
    for name, statistics in ours.items():
        figures = agreement(statistics, real)
        text.append(f"{name:44}  {figures['mean_r']:9.3f}  {figures['difference_r']:15.3f}")

    measured, _, estimated = ours.values()
    pairs = {
        f"{line}, {title}": (statistics.mean[group], real.mean[group])
        for title, statistics in (("before", measured), ("after", estimated))
        for group, line in enumerate(real.groups)
    }
    seen = int((before.obs["split"] == "train").sum())
    note = f"Training saw {seen:,} of these {before.n_obs:,} cells: the report compares with cells that it did not see."
    colours = {title: STAGES["measured" if title.endswith("before") else "reconstructed"] for title in pairs}
    labels = ("Drop-seq, mean log expression", "CEL-seq2, mean log expression")
    plot_means(pairs, output / "means.png", labels, colours, note)
    space = PrincipalComponents.of(before)
    coordinates = {
        "before": umap_coordinates(space.project(before.X)),
        "after: all cells as CEL-seq2": umap_coordinates(space.project(after.X)),
    }
    obs = before.obs.rename(columns={"celltype": "line"})
    plot_umaps(coordinates, obs, output / "umap.png", ["batch", "line"], f"{EACH_ITS_OWN}\n{note}")
    text.append(f"pictures: {output / 'umap.png'}, {output / 'means.png'}")
    return "\n".join(text)


def _read(path: Path) -> anndata.AnnData:
    import anndata

    return anndata.read_h5ad(path)

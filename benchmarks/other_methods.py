"""Other methods on the test of docs/quality.md: Drop-seq cells reconstructed, compared with held-out CEL-seq2 cells.

Cells, split and figures are those of benchmarks/quality.py. Each method gets an environment of its own:

    python -m venv magic && magic/bin/pip install magic-impute==3.0.0 "numpy<2"
    python benchmarks/other_methods.py magic magic/bin/python --seeds 0 1 2
    python -m venv scvi && scvi/bin/pip install "scvi-tools==1.4.*"
    python benchmarks/other_methods.py scvi scvi/bin/python

MAGIC (van Dijk et al., Cell 174:716, 2018) has its default parameters and works on log-normalised values. It knows
nothing of batches: it fills in what neighbours show, from both batches or from the Drop-seq cells alone. The release of
2021 does not run with numpy 2.

scVI (Lopez et al., Nature Methods 15:1053, 2018) has 30 latent dimensions and 2 layers and trains for 400 epochs on the
raw counts of both batches; the Drop-seq cells are decoded with CEL-seq2 as their batch, as normalised expression and as
draws of counts, log-normalised and averaged.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from quality import LSN, REFERENCE, SOURCE, log_normalise, main_pair, mean, row, shown
from scipy import sparse

from discern.metrics.gene_agreement import GroupStatistics, agreement

if TYPE_CHECKING:
    import anndata as ad
    import numpy.typing as npt

# Each gets a file of cells, the file for its results and the seed. The packages that it imports are not those of this
# environment.
_MAGIC = """
import sys, magic, numpy
values = numpy.load(sys.argv[1])["values"]
numpy.savez(sys.argv[2], imputed=magic.MAGIC(random_state=int(sys.argv[3]), verbose=0).fit_transform(values))
"""
_SCVI = f"""
import sys, anndata, numpy, scipy.sparse, scvi
file = numpy.load(sys.argv[1])
counts, batch = scipy.sparse.csr_matrix(file["values"]), file["batch"]
scvi.settings.seed = int(sys.argv[3])
cells = anndata.AnnData(counts, obs={{"batch": batch}})
scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
model = scvi.model.SCVI(cells, n_latent=30, n_layers=2)
model.train(max_epochs=400, accelerator="cpu", enable_progress_bar=False)
chosen = {{"transform_batch": [str(file["reference"])]}}
normalised = model.get_normalized_expression(library_size={LSN}, return_numpy=True, **chosen)
mean = numpy.zeros(normalised.shape)
for _ in range(25):
    draw = model.posterior_predictive_sample(**chosen).todense().reshape(mean.shape)
    mean += numpy.log1p(draw / numpy.maximum(draw.sum(axis=1, keepdims=True), 1) * {LSN}) / 25
latent = model.get_latent_representation()
numpy.savez(sys.argv[2], normalised=numpy.log1p(normalised), draws=mean, latent=latent)
"""
_SYSVI = """
import sys, anndata, numpy, scvi, torch
file = numpy.load(sys.argv[1])
batch, reference = file["batch"], str(file["reference"])
scvi.settings.seed = int(sys.argv[3])
cells = anndata.AnnData(file["values"].astype("float32"), obs={"batch": batch})
scvi.external.SysVI.setup_anndata(cells, batch_key="batch")
model = scvi.external.SysVI(cells)
model.train(max_epochs=200, accelerator="cpu", enable_progress_bar=False)
latent = model.get_latent_representation()
labels = torch.full((len(latent), 1), sorted(set(batch)).index(reference))
with torch.no_grad():
    made = model.module.eval().generative(torch.as_tensor(latent), labels, cat_covs=[], compute_cycle=False)
numpy.savez(sys.argv[2], decoded=numpy.maximum(made["px"].loc.numpy(), 0), latent=latent)
"""


def run(script: str, python: Path, seed: int, **arrays: npt.NDArray) -> tuple[dict[str, npt.NDArray], float]:
    """Run a method in its own interpreter; return the arrays that it made and the seconds that it took."""
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "before.npz"), Path(folder, "after.npz")
        np.savez(before, **arrays)
        start = time.perf_counter()
        subprocess.run([python.absolute(), "-c", script, before, after, str(seed)], check=True, cwd=folder)
        seconds = time.perf_counter() - start
        with np.load(after) as file:
            return dict(file), seconds


def magic(cells: ad.AnnData, python: Path, seed: int) -> dict[str, tuple[npt.NDArray, float]]:
    """Return name -> (Drop-seq cells, log-normalised; seconds)."""
    source = (cells.obs["batch"] == SOURCE).to_numpy()
    values = log_normalise(cells.X)
    both, seconds_both = run(_MAGIC, python, seed, values=values)
    alone, seconds_alone = run(_MAGIC, python, seed, values=values[source])
    return {
        "MAGIC, both batches": (both["imputed"][source], seconds_both),
        "MAGIC, Drop-seq alone": (alone["imputed"], seconds_alone),
    }


def scvi(cells: ad.AnnData, python: Path, seed: int) -> dict[str, tuple[npt.NDArray, float]]:
    """Return name -> (Drop-seq cells as CEL-seq2, log-normalised; seconds)."""
    batch = cells.obs["batch"].to_numpy(dtype=str)
    counts = sparse.csr_matrix(cells.X).toarray()
    made, seconds = run(_SCVI, python, seed, values=counts, batch=batch, reference=np.array(REFERENCE))
    source = batch == SOURCE
    return {
        "scVI, normalised expression": (made["normalised"][source], seconds),
        "scVI, mean of 25 draws of counts": (made["draws"][source], seconds),
    }


def main() -> None:
    """Print the figures of a method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    methods = {"magic": magic, "scvi": scvi}
    parser.add_argument("method", choices=list(methods))
    parser.add_argument("python", type=Path, help="interpreter that has the method")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in arguments.seeds:
        cells, truth = main_pair(seed)
        lines = cells.obs["celltype"].to_numpy()[(cells.obs["batch"] == SOURCE).to_numpy()]
        for name, (values, seconds) in methods[arguments.method](cells, arguments.python, seed).items():
            figures = shown(agreement(GroupStatistics.of(values, lines), truth)) | {"seconds": seconds}
            row(f"{name}, seed {seed}", figures)
            rows.setdefault(name, []).append(figures)
    for name, of_seeds in rows.items():
        if len(of_seeds) > 1:
            row(f"{name}, mean", mean(of_seeds))


if __name__ == "__main__":
    main()

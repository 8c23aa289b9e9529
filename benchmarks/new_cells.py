r"""Measure time and memory of `discern project --input` beside those of processing and projecting all cells again.

    python benchmarks/new_cells.py 10000 100000 --density 0.09 --layers X

Trains an experiment on generated cells (see `generate_cells.py`) for an epoch, projects as many new ones as are wanted
with it, and does what would have to be done without: `discern process` of old and new cells together, and `discern
project` with the same model. The largest difference between both results of the new cells is printed, too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
from scale import measured, parameters

_REFERENCE = "celseq2"


def cells(folder: Path, name: str, number: int, density: float, seed: int) -> Path:
    """Generate cells, unless they are there."""
    file = folder / f"{name}-{number}-{density}.h5ad"
    if not file.exists():
        generator = Path(__file__).with_name("generate_cells.py")
        arguments = [str(number), str(file), "--density", str(density), "--seed", str(seed)]
        subprocess.run([sys.executable, str(generator), *arguments], check=True)
    return file


def experiment_of(folder: Path, old: Path, *more: Path) -> Path:
    """Write a parameter file for cells of one file, or of several; all genes are kept, so that these are the same."""
    content = json.loads(parameters(folder, old, 1).read_text())
    (experiment,) = content["experiments"].values()
    experiment["input_ds"]["filtering"]["min_cells"] = 0
    experiment["input_ds"]["raw_input"] |= {str(file): "batch" for file in more}
    experiment["model"] = {"weighting_decoder_dropout": 10000}
    experiment["training"]["visualisation"] = False
    name = "-".join(["all", *(file.stem for file in more)]) if more else old.stem
    content["experiments"] = {name: experiment}
    file = folder / f"{name}.json"
    file.write_text(json.dumps(content, indent=2))
    return file


def differences(one: Path, other: Path, cells_at_once: int = 2000) -> tuple[float, int]:
    """Compare X of the last cells of a file with that of another one, all its cells.

    Returns:
        The largest difference where both are 0 or neither is, and the number of other entries: those whose probability
        is so near to the number drawn that its last digit decides.
    """
    first, second = (ad.read_h5ad(path, backed="r") for path in (one, other))
    begin, worst, otherwise = first.n_obs - second.n_obs, 0.0, 0
    for start in range(0, second.n_obs, cells_at_once):
        stop = min(start + cells_at_once, second.n_obs)
        parts = (first.X[begin + start : begin + stop], second.X[start:stop])
        a, b = (part.toarray() if hasattr(part, "toarray") else part for part in parts)
        alike = (a > 0) == (b > 0)
        worst = max(worst, float(np.abs(a - b)[alike].max()))
        otherwise += int((~alike).sum())
    return worst, otherwise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("n_old", type=int)
    parser.add_argument("n_new", type=int, nargs="+")
    parser.add_argument("--density", type=float, default=0.09, help="share of non-zero entries")
    parser.add_argument("--layers", default="X", help="what project writes")
    parser.add_argument("--folder", type=Path, default=Path("scale"), help="for the cells and the experiments")
    arguments = parser.parse_args()
    folder, program = arguments.folder, [sys.executable, "-m", "discern"]
    folder.mkdir(parents=True, exist_ok=True)
    project = ["--reference", _REFERENCE, "--layers", arguments.layers]
    old = cells(folder, "old", arguments.n_old, arguments.density, 0)
    file = experiment_of(folder, old)
    trained = folder / "experiments" / old.stem
    if not (trained / "job").exists():
        for step in (["process", "--force"], ["train"]):
            subprocess.run([*program, *step, str(file)], check=True)
    rows = []
    for number in arguments.n_new:
        new = cells(folder, "new", number, arguments.density, 1)
        took: dict[str, float] = {}

        def run(name: str, command: list[str], number: int = number, took: dict[str, float] = took) -> None:
            took[name], cpu, peak = measured([*program, *command])
            rows.append(f"{number:>9,} {name:<22} {took[name]:>8.1f} s {cpu:>8.1f} s CPU {peak / 2**30:>6.2f} GB")
            print(rows[-1], flush=True)

        for name in ("project --input, first", "project --input"):
            run(name, ["project", "--input", str(new), *project, str(file)])
        together = experiment_of(folder, old, new)
        run("process of all", ["process", "--force", str(together)])
        place = folder / "experiments" / together.stem
        shutil.copytree(trained / "job", place / "job", dirs_exist_ok=True)
        run("project of all", ["project", *project, str(together)])
        ratio = took["project --input"] / (took["process of all"] + took["project of all"])
        result = f"projected_to_reference_{_REFERENCE}.h5ad"
        own = trained / "projected" / new.stem / result
        worst, otherwise = differences(place / "projected" / result, own)
        rows.append(
            f"{number:>9,} ratio {ratio:.2f}, largest difference of X {worst:.2g}, {otherwise} entries drawn otherwise"
        )
        print(rows[-1], flush=True)
        shutil.rmtree(place)
    print("\n".join(["    cells command                    time      CPU time   peak memory", *rows]))


if __name__ == "__main__":
    main()

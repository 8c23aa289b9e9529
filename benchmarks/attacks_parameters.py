"""Attack the reading of parameters: mutated parameter and search files, and accepted ones run for real on a few cells.

    python benchmarks/attacks_parameters.py --files 2000 --runs 40 --seed 0

A mutation swaps a type, puts an extreme number, odd text or deep nesting in the place of a value, or takes a key away.
An answer is bad if it is anything but a result or a `UserError` in one visible line: another exception, a hang, more
than 2,000 characters. Prints each bad answer and the counts; exit code 1 if there was one.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from discern.config import reading
from discern.errors import UserError
from discern.runtime.text import LONGEST_MESSAGE, has_control, message

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, -2, 0.5, -0.5, 1.5, -0.0, 0.1, 3.7, 100, 1e-300, 1e300, -1e300, 1e20, 1e30),
    *(
        2**31 - 1,
        2**31,
        2**32,
        2**63,
        -(2**63),
        10**25,
        10**9,
        10**7,
        "",
        " ",
        "0",
        "1",
        "true",
        "null",
        "NaN",
        "genes",
    ),
    *(
        "\u202ereversed",
        "\x1b[31mred",
        "tab\there",
        "two\nlines",
        "\ufeff",
        "Ünïcode",
        "=1+1",
        "../../up",
        "/",
        "/proc/x",
    ),
    *("a" * 300, "a" * 10_000, "os.system", "keras.layers.Lambda", "ray.tune.choice", "__class__", "%s%n", "{0}", "\\"),
    *([], {}, [[]], [None], [1], [-1], ["a"], [1, 2, 3], [10**7], [1e308], {"": 1}, {"name": 1}),
    *({"a": {"b": {"c": {}}}}, [[[[[[1]]]]]], {"name": "x"}, {"algorithm": "x"}, ["x"] * 1000, list(range(200))),
]
RAW: list[str] = [
    *(
        "1e999",
        "-1e999",
        "NaN",
        "Infinity",
        "1" + "0" * 400,
        "1" + "0" * 5000,
        "-0",
        "1e-400",
        '"\\ud800"',
        '"\\u0000"',
    ),
    *(
        "[" * 400 + "]" * 400,
        "[" * 40 + "]" * 40,
        '{"a":' * 300 + "1" + "}" * 300,
        '{"a":1,"a":2}',
        "'x'",
        "01",
        "tru",
        "",
    ),
]


def places(tree: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value of a tree."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield (*way, key)
        yield from places(value, (*way, key))


def mutated(tree: Any, generator: random.Random) -> tuple[str, str]:
    """Return a mutated file and a word on what was done."""
    changed = copy.deepcopy(tree)
    done, raw = [], None
    for _ in range(generator.choice([1, 1, 1, 2, 3])):
        if not (there := list(places(changed))):
            break
        *way, last = generator.choice(there)
        node = changed
        for key in way:
            node = node[key]
        kind = generator.choice(["odd", "odd", "odd", "raw", "remove", "rename", "swap"])
        if kind == "remove":
            del node[last]
        elif kind == "rename" and isinstance(node, dict):
            node[str(generator.choice(ODD))] = node.pop(last)
        elif kind == "swap":
            node[last] = copy.deepcopy(_at(tree, generator.choice(list(places(tree)))))
        elif kind == "raw" and raw is None:
            raw, node[last] = generator.choice(RAW), "@RAW@"
            done.append(raw[:20])
        else:
            node[last] = copy.deepcopy(generator.choice(ODD))
            done.append(repr(node[last])[:40])
        done.append(f"{kind} {'.'.join(map(str, (*way, last)))}")
    text = json.dumps(changed)
    return text.replace('"@RAW@"', raw) if raw is not None else text, "; ".join(done)


def _at(tree: Any, way: tuple[Any, ...]) -> Any:
    for key in way:
        tree = tree[key]
    return tree


def verdict(call: Any) -> str:
    """Return what is wrong with the answer of a call, an empty text if nothing is."""
    begin = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except UserError as error:
        text = message(str(error))
        if len(text) > LONGEST_MESSAGE or has_control(text) or not text.strip():
            return f"message: {text[:100]}"
        for word in ("Error", "Exception", "Traceback", "pydantic", "NoneType", "<class"):
            if word in text:
                return f"message speaks of the program: {text[:300]}"
    except Exception as error:  # noqa: BLE001 (that is what is looked for)
        return f"{type(error).__name__}: {str(error)[:300]}"
    if time.monotonic() - begin > 60:
        return "took more than a minute"
    return ""


def attack_files(count: int, seed: int, folder: Path) -> tuple[int, list[str]]:
    """Read mutated parameter and search files; returns how many, and the bad answers."""
    generator = random.Random(seed)
    parameters = json.loads((ROOT / "parameters.json").read_text())
    search = json.loads((ROOT / "hyperparameter_search.json").read_text())
    path, bad = folder / "mutated.json", []
    for _ in range(count):
        base, read = generator.choice([(parameters, reading.load_parameters), (search, reading.load_search)])
        text, done = mutated(base, generator)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        if wrong := verdict(lambda read=read: read(path)):
            bad.append(f"{done}: {wrong}")
    return count, bad


def write_cells(path: Path) -> None:
    """Write raw counts of 60 cells of two batches, 40 genes."""
    import anndata
    import pandas as pd
    from scipy import sparse

    counts = np.random.default_rng(0).poisson(2, (60, 40)).astype(np.float32)
    obs = pd.DataFrame({"batch": ["a", "b"] * 30}, index=[f"cell{number}" for number in range(60)])
    var = pd.DataFrame(index=[f"gene{number}" for number in range(40)])
    anndata.AnnData(sparse.csr_matrix(counts), obs=obs, var=var).write_h5ad(path)


def small(cells: Path, experiments_dir: Path) -> dict[str, Any]:
    """Return a parameter file whose experiment takes seconds."""
    experiment = {
        "input_ds": {
            "raw_input": {str(cells): "batch"},
            "filtering": {"min_genes": 1, "min_cells": 1},
            "scale": {"LSN": 1000, "fixed_scaling": {"mean": "genes", "var": "genes"}},
            "split": {"split_seed": 0, "valid_cells": 0.2, "mmd_cells": 1.0, "balanced_split": True, "test_cells": 0},
            "n_cpus_preprocessing": 1,
        },
        "model": {
            "latent_dim": 3,
            "activation_fn": "keras.activations.relu",
            "output_fn": "softplus",
            "encoder": {"layers": [8], "regularization": 0.1},
            "decoder": {"layers": [8], "regularization": 0.0},
            "norm_type": ["conditionallayernorm"],
            "conditional_regularization": {"name": "keras.regularizers.L1L2", "l1": 0.1, "l2": 0.1},
            "reconstruction_loss": {"name": "HuberLoss", "delta": 9.0},
            "crossentropy": {"label_smoothing": 0.1, "lower_label_smoothing": 0.1, "zeros_eps": 1e-3},
            "wae_lambda": 10,
            "weighting_decoder_dropout": 10,
            "weighting_random_encoder": 1e-8,
            "weighting_batch_mmd": 1.0,
        },
        "training": {
            "GPU": [0],
            "XLA": False,
            "batch_size": 8,
            "max_steps": 2,
            "max_updates": 4,
            "parallel_pc": 1,
            "early_stopping": {"delay": 1, "min_delta": 0.01, "patience": 3, "monitor": "val_loss", "mode": "min"},
            "optimizer": {
                "algorithm": "keras.optimizers.Adam",
                "learning_rate": 1e-3,
                "beta_1": 0.85,
                "epsilon": 1e-7,
                "clipnorm": 1.0,
                "learning_decay": {"name": "keras.optimizers.schedules.CosineDecay", "decay_steps": 10, "alpha": 0.1},
                "Lookahead": True,
            },
            "visualisation": False,
            "freq": 10,
            "seed": 0,
            "thin_counts": 1.0,
        },
    }
    return {"exp_param": {"experiments_dir": str(experiments_dir)}, "experiments": {"x": experiment}}


def run_all(path: Path) -> None:
    """Process, train and project what a parameter file describes."""
    from discern.experiment import process
    from discern.experiment.project import run_projection
    from discern.experiment.train import run_train

    parameters = reading.load_parameters(path)
    for name, result in process.process(parameters, with_tfrecords=False).items():
        if isinstance(result, Exception):
            raise result
        training = parameters.experiments[name].training
        if training.max_steps > 50 and (training.max_updates or 10**9) > 500:
            return  # a valid wish for a long training
        run_train(parameters.folder(name))
        run_projection(parameters.folder(name), [("batch", "a")], None, all_batches=False, store_sigmas=False)


def attack_runs(count: int, seed: int, folder: Path) -> tuple[int, list[str]]:
    """Run mutated files of a small experiment that are accepted; returns how many, and the bad answers."""
    generator = random.Random(seed)
    cells, bad, ran, number = folder / "cells.h5ad", [], 0, 0
    write_cells(cells)
    while ran < count:
        number += 1
        text, done = mutated(small(cells, folder / f"experiments{number}"), generator)
        path = folder / "mutated.json"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reading.load_parameters(path)
        except UserError:
            continue
        ran += 1
        with contextlib.chdir(folder):  # a mutated experiments_dir may be relative
            wrong = verdict(lambda path=path: run_all(path))
        if wrong:
            bad.append(f"{done}: {wrong}")
    return ran, bad


def main() -> int:
    """Run the attacks that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="JSON file to add the figures to")
    given = parser.parse_args()
    found = 0
    with tempfile.TemporaryDirectory() as name:
        for what, attack, count in (("files", attack_files, given.files), ("runs", attack_runs, given.runs)):
            tried, bad = attack(count, given.seed, Path(name)) if count else (0, [])
            print(f"{what}: {tried} tried, {len(bad)} badly answered")
            print("\n".join(bad))
            if given.results and tried:
                from record import record

                command = f"python benchmarks/attacks_parameters.py --seed {given.seed} --{what} {count}"
                row = {"tried": tried, "badly answered": len(bad)}
                record(given.results, {f"mutated parameters: {what}": row}, command)
            found += len(bad)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

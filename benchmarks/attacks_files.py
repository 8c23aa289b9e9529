r"""Attack the program with corrupted and malicious files, and count what it answers badly.

    python benchmarks/attacks_files.py --seed 0 --random 400
    python benchmarks/attacks_files.py --seed 1 --random 2000 --only raw

Small cells are written in every format that is read, and an experiment is made of them. Each attack changes a copy: a
planned one in a place where the answer must be a refusal, a random one anywhere (bytes, parts of the file, types,
shapes, attributes, links). The commands run in processes of their own.

Badly answered is: a crash, no end after a minute, an exit code other than 0 and 2, exit code 0 where a refusal is due,
a traceback or the name of a Python exception, more than one line of error or 2,000 characters, and a message that does
not name the file.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gzip
import io
import itertools
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from scipy import io as scipy_io
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CELLS, GENES = 60, 30
_SECONDS = 60
_MEMORY = 12 * 2**30
_EXCEPTION = re.compile(r"\b(Traceback|[A-Z]\w+(Error|Exception|Warning))\b")


# --- files -----------------------------------------------------------------------------------------------------------


def make_cells(seed: int = 0) -> ad.AnnData:
    """Return raw counts of two batches."""
    random = np.random.default_rng(seed)
    counts = random.poisson(3, (CELLS, GENES)) * (random.random((CELLS, GENES)) < 0.25)
    obs = pd.DataFrame(
        {"batch": pd.Categorical(["one", "two"] * (CELLS // 2)), "celltype": ["T", "B", "NK"] * (CELLS // 3)},
        index=[f"ACGTACGTAC{number:02d}-1" for number in range(CELLS)],
    )
    var = pd.DataFrame(index=[f"GENE{chr(65 + number // 26)}{chr(65 + number % 26)}" for number in range(GENES)])
    return ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)


def write_10x(path: Path, cells: ad.AnnData) -> None:
    """Write the HDF5 file of 10x Genomics, version 3."""
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(cells.X, name).astype(np.int32)
        group["shape"] = np.array(cells.shape[::-1], dtype=np.int32)
        group["barcodes"] = cells.obs_names.to_numpy("S")
        features = group.create_group("features")
        features["id"] = np.array([f"ENSG{number:011d}".encode() for number in range(cells.n_vars)])
        features["name"] = cells.var_names.to_numpy("S")
        for name, value in (("feature_type", b"Gene Expression"), ("genome", b"GRCh38")):
            features[name] = np.array([value] * cells.n_vars)


def write_old(path: Path, cells: ad.AnnData) -> None:
    """Write `.h5ad` as anndata before 0.7 did."""
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        group.attrs["h5sparse_format"], group.attrs["h5sparse_shape"] = "csr", cells.shape
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(cells.X, name)
        for part, names in (("obs", cells.obs_names), ("var", cells.var_names)):
            file[part] = np.array([(name.encode(),) for name in names], dtype=[("index", "S40")])


def write_loom(path: Path, cells: ad.AnnData) -> None:
    """Write loom, without its library."""
    with h5py.File(path, "w") as file:
        file["matrix"] = cells.X.toarray().T
        file.attrs["LOOM_SPEC_VERSION"] = "2.0.1"
        file["row_attrs/Gene"], file["col_attrs/CellID"] = cells.var_names.to_numpy("S"), cells.obs_names.to_numpy("S")
        for name in ("layers", "row_graphs", "col_graphs"):
            file.create_group(name)


def write_mtx(folder: Path, cells: ad.AnnData, packed: bool) -> None:
    """Write the folder of 10x Genomics, version 3 if it is packed, else 2."""
    folder.mkdir()
    text = io.BytesIO()
    scipy_io.mmwrite(text, cells.X.T.astype(int))
    genes = "".join(f"ENSG{n:011d}\t{name}\tGene Expression\n" for n, name in enumerate(cells.var_names))
    files = {"matrix.mtx": text.getvalue(), "barcodes.tsv": "".join(f"{name}\n" for name in cells.obs_names).encode()}
    files["features.tsv" if packed else "genes.tsv"] = genes.encode()
    for name, content in files.items():
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(content) if packed else content)


def write_raw(folder: Path) -> dict[str, Path]:
    """Write the same cells in every format; returns the paths by name of the format."""
    cells = make_cells()
    made = {name: cells.copy() for name in ("csr", "csc", "dense")}
    made["csc"].X, made["dense"].X = cells.X.tocsc(), cells.X.toarray()
    paths = {}
    for name, adata in made.items():
        paths[name] = folder / f"{name}.h5ad"
        adata.write_h5ad(paths[name])
    for version in (2, 3):
        with ad.settings.override(zarr_write_format=version):
            paths[f"zarr{version}"] = folder / f"zarr{version}.zarr"
            cells.write_zarr(paths[f"zarr{version}"])
    table = pd.DataFrame(cells.X.toarray().T.astype(int), index=cells.var_names, columns=cells.obs_names)
    writers: dict[str, tuple[str, Callable[[Path], object]]] = {
        "10x": ("h5", lambda path: write_10x(path, cells)),
        "old": ("h5ad", lambda path: write_old(path, cells)),
        "loom": ("loom", lambda path: write_loom(path, cells)),
        "mtx": ("", lambda path: write_mtx(path, cells, packed=False)),
        "mtxgz": ("", lambda path: write_mtx(path, cells, packed=True)),
        "csv": ("csv", table.to_csv),
        "tsvgz": ("tsv.gz", lambda path: table.to_csv(path, sep="\t")),
    }
    for name, (suffix, write) in writers.items():
        paths[name] = folder / (f"{name}.{suffix}" if suffix else name)
        write(paths[name])
    return paths


# --- changes ---------------------------------------------------------------------------------------------------------


def replace(group: Any, name: str, values: Any, keep: bool = True) -> None:
    """Write other values in place of an array of an HDF5 or zarr group, with the same attributes."""
    attributes = dict(group[name].attrs) if keep else {}
    del group[name]
    if isinstance(group, h5py.Group):
        group[name] = values
    else:
        group.create_array(name, data=np.asarray(values))
    group[name].attrs.update(attributes)


def _set(position: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[position] = value
        return values

    return change


BROKEN_SPARSE: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "index too high": ("indices", _set(5, GENES + CELLS)),
    "index enormous": ("indices", _set(5, 2**31 - 1)),
    "index negative": ("indices", _set(5, -1)),
    "indices with fractions": ("indices", lambda values: values + 0.5),
    "indices are floats": ("indices", lambda values: values.astype(float)),
    "indices are text": ("indices", lambda values: values.astype("S")),
    "indices too short": ("indices", lambda values: values[:-3]),
    "indices too long": ("indices", lambda values: np.append(values, values[-3:])),
    "indices of two dimensions": ("indices", lambda values: values[:, None]),
    "indptr goes back": ("indptr", lambda values: np.array([values[0], values[-1], *values[2:]])),
    "indptr enormous": ("indptr", lambda values: np.array([*values[:-1].astype(np.int64), 2**40])),
    "indptr negative": ("indptr", _set(3, -5)),
    "indptr does not begin with 0": ("indptr", _set(0, 2)),
    "indptr ends too early": ("indptr", lambda values: np.minimum(values, values[-1] - 4)),
    "indptr too short": ("indptr", lambda values: values[:-1]),
    "indptr too long": ("indptr", lambda values: np.append(values, values[-1])),
    "indptr of floats": ("indptr", lambda values: values.astype(float)),
    "indptr empty": ("indptr", lambda values: values[:0]),
    "data too short": ("data", lambda values: values[:-3]),
    "data too long": ("data", lambda values: np.append(values, values[-3:])),
    "data is text": ("data", lambda values: values.astype("S")),
    "data is complex": ("data", lambda values: values.astype(complex)),
    "data of two dimensions": ("data", lambda values: values[:, None]),
}
"""What no reader may take for a matrix, in every format that stores a sparse one."""

BROKEN_SHAPES: dict[str, list[Any]] = {
    "shape of too few genes": [CELLS, GENES - 3],
    "shape of too many genes": [CELLS, GENES + 3],
    "shape of too few cells": [CELLS - 3, GENES],
    "shape of too many cells": [CELLS + 3, GENES],
    "shape enormous": [10**12, GENES],
    "shape enormous in both": [10**12, 10**12],
    "shape negative": [-CELLS, GENES],
    "shape of one number": [CELLS],
    "shape of three numbers": [CELLS, GENES, 1],
    "shape of floats": [CELLS + 0.5, GENES],
    "shape of text": ["60", "30"],
}


def break_sparse(path: Path, group: str, change: str) -> None:
    """Make a change of `BROKEN_SPARSE` to a matrix in an HDF5 file or zarr folder."""
    name, function = BROKEN_SPARSE[change]
    with opened(path) as file:
        replace(file[group], name, function(file[group][name][...]))


def break_shape(path: Path, group: str, change: str) -> None:
    """Make a change of `BROKEN_SHAPES`."""
    shape = BROKEN_SHAPES[change]
    with opened(path) as file:
        elem = file[group]
        if "shape" in elem:  # 10x: genes x cells
            replace(
                elem, "shape", np.array([value.encode() if isinstance(value, str) else value for value in shape[::-1]])
            )
        else:
            elem.attrs["h5sparse_shape" if "h5sparse_shape" in elem.attrs else "shape"] = shape


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open an HDF5 file or zarr folder to change it."""
    if path.is_dir():
        import zarr

        (path / ".zmetadata").unlink(missing_ok=True)
        yield zarr.open_group(path, mode="r+", use_consolidated=False)
    else:
        with h5py.File(path, "a") as file:
            yield file


def _external_link(file: h5py.File, name: str, elsewhere: Path) -> None:
    del file[name]
    file[name] = h5py.ExternalLink(str(elsewhere), name)


def _external_storage(file: h5py.File, name: str, elsewhere: Path) -> None:
    old = file[name]
    elsewhere.write_bytes(bytes(old.size * old.dtype.itemsize))
    shape, dtype, attributes = old.shape, old.dtype, dict(old.attrs)
    del file[name]
    made = file.create_dataset(name, shape, dtype, external=[(str(elsewhere), 0, h5py.h5f.UNLIMITED)])
    made.attrs.update(attributes)


def _virtual(file: h5py.File, name: str, elsewhere: Path) -> None:
    old = file[name]
    layout = h5py.VirtualLayout(shape=old.shape, dtype=old.dtype)
    layout[...] = h5py.VirtualSource(str(elsewhere), name, shape=old.shape)
    attributes = dict(old.attrs)
    del file[name]
    file.create_virtual_dataset(name, layout).attrs.update(attributes)


def _enormous(file: h5py.File, name: str, elsewhere: Path) -> None:
    old = file[name]
    dtype, attributes = old.dtype, dict(old.attrs)
    del file[name]
    made = file.create_dataset(name, (10**12, *old.shape[1:]), dtype, chunks=(1000, *old.shape[1:]))
    made.attrs.update(attributes)


def _huge_chunk(file: h5py.File, name: str, elsewhere: Path) -> None:
    old = file[name][...]
    attributes, itemsize = dict(file[name].attrs), file[name].id.get_type().get_size()
    del file[name]
    rows = (2**32 - 8) // itemsize // max(1, int(np.prod(old.shape[1:])))
    made = file.create_dataset(
        name, old.shape, old.dtype, chunks=(rows, *old.shape[1:]), maxshape=(None, *old.shape[1:]), compression="gzip"
    )
    made.attrs.update(attributes)  # written to, it would take 4 GB here as well


def _unknown_link(file: h5py.File, name: str, elsewhere: Path) -> None:
    _external_link(file, name, elsewhere)  # as near as h5py comes to it


def _cycle(file: h5py.File, name: str, elsewhere: Path) -> None:
    owner = file[name].parent
    owner["again"] = file["/"] if owner.name != "/" else owner


def _soft_cycle(file: h5py.File, name: str, elsewhere: Path) -> None:
    file[name].parent["again"] = h5py.SoftLink("/")


def _dangling(file: h5py.File, name: str, elsewhere: Path) -> None:
    del file[name]
    file[name] = h5py.SoftLink("/nowhere/at/all")


def _deep(file: h5py.File, name: str, elsewhere: Path) -> None:
    group = file[name].parent
    for _ in range(400):
        group = group.create_group("g")


def _wide(file: h5py.File, name: str, elsewhere: Path) -> None:
    """Groups that each hold the next one twice: 2^40 paths."""
    groups = [file.create_group(f"uns/bomb/{number}") for number in range(40)]
    for group, following in itertools.pairwise(groups):
        group["a"] = group["b"] = following


MALICIOUS: dict[str, Callable[[h5py.File, str, Path], None]] = {
    "external link": _external_link,
    "external storage": _external_storage,
    "virtual source": _virtual,
    "enormous by fill value": _enormous,
    "chunk of 4 GB": _huge_chunk,
    "group within itself": _cycle,
    "link to the root": _soft_cycle,
    "link to nowhere": _dangling,
    "400 levels": _deep,
    "2^40 paths": _wide,
}
"""What is refused in every HDF5 file, whatever it is."""

NOT_FILES: dict[str, Callable[[Path], object]] = {
    "named pipe": os.mkfifo,
    "socket": lambda path: _socket(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder for file, file for folder": lambda path: (
        path.mkdir() if path.suffix in (".h5ad", ".h5", ".csv", ".json") else path.write_text("a file")
    ),
    "empty file": lambda path: path.write_bytes(b""),
    "link in a circle": lambda path: path.symlink_to(path),
}


def _socket(path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as made:
        here = os.open(path.parent, os.O_RDONLY)
        made.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


def scramble(path: Path, random: np.random.Generator) -> str:
    """Change a file anywhere; returns what was done."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    file = files[random.integers(len(files))]
    is_hdf5 = file.suffix in (".h5", ".h5ad", ".loom", ".hdf5")
    if is_hdf5 and random.random() < 0.6:
        return scramble_hdf5(file, random)
    content = bytearray(file.read_bytes())
    kind = random.choice(
        ["flip", "cut", "zero", "insert", "swap", "empty", "text"], p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05]
    )
    if not content or kind == "empty":
        content = bytearray()
    elif kind == "flip":
        for position in random.integers(len(content), size=random.integers(1, 30)):
            content[position] ^= 1 << random.integers(8)
    elif kind == "cut":
        del content[random.integers(len(content)) :]
    elif kind == "zero":
        start = random.integers(len(content))
        content[start : start + 200] = bytes(len(content[start : start + 200]))
    elif kind == "insert":
        start = random.integers(len(content))
        content[start:start] = random.bytes(50)
    elif kind == "swap":
        a, b = sorted(random.integers(len(content), size=2))
        content[a : a + 64], content[b : b + 64] = content[b : b + 64], content[a : a + 64]
    else:
        content = bytearray(b"<html>404 Not Found</html>\n" * 20)
    file.write_bytes(bytes(content))
    return f"{kind} in {file.name}"


def scramble_hdf5(path: Path, random: np.random.Generator) -> str:
    """Change a part of an HDF5 file; returns what was done."""
    with h5py.File(path, "a") as file:
        places: list[str] = []
        file.visit(places.append)
        name = places[random.integers(len(places))]
        elem, owner, last = file[name], file[name].parent, name.rpartition("/")[2]
        if random.random() < 0.35 or isinstance(elem, h5py.Group):
            return _scramble_attribute(file[name] if len(file[name].attrs) else file, random)
        values = elem[()]
        kinds = ["delete", "text", "negative", "huge", "nan", "longer", "shorter", "empty", "2-d", "scalar", "group"]
        kinds += [
            "swap",
            "float16",
            "int64",
            "uint64",
            "bool",
            "complex",
            "reference",
            "compound",
            "big-endian",
            "null",
        ]
        kind = str(random.choice(kinds))
        numbers = np.asarray(values)
        is_number = numbers.dtype.kind in "iuf"
        changed: Any = values
        if kind == "delete":
            del owner[last]
            return f"{name} deleted"
        if kind == "group":
            del owner[last]
            owner.create_group(last)
            return f"{name} a group"
        if kind == "swap":
            other = places[random.integers(len(places))]
            if isinstance(file[other], h5py.Dataset):
                changed = file[other][()]
        elif kind == "text":
            changed = np.full(np.shape(values), b"\xff\x00text", dtype="S8")
        elif kind == "null":
            changed = h5py.Empty("f4")
        elif kind == "reference":
            changed = np.full(np.shape(values), file.ref, dtype=h5py.ref_dtype)
        elif kind == "compound":
            changed = np.zeros(np.shape(values), dtype=[("a", "i4"), ("b", "S3")])
        elif kind in ("negative", "huge", "nan") and is_number and numbers.size:
            numbers = numbers.astype(np.int64 if numbers.dtype.kind in "iu" else numbers.dtype)
            numbers.flat[random.integers(numbers.size)] = (
                {"negative": -3, "huge": 2**40, "nan": 2**62}[kind]
                if numbers.dtype.kind == "i"
                else {"negative": -3.0, "huge": 1e38, "nan": random.choice([np.nan, np.inf])}[kind]
            )
            changed = numbers
        elif kind == "longer" and numbers.ndim:
            changed = np.concatenate([numbers, numbers[: random.integers(1, 5)]])
        elif kind == "shorter" and numbers.ndim:
            changed = numbers[: -int(random.integers(1, 5))]
        elif kind == "empty" and numbers.ndim:
            changed = numbers[:0]
        elif kind == "2-d":
            changed = numbers[None]
        elif kind == "scalar" and numbers.size:
            changed = numbers.flat[0]
        elif is_number and kind in ("float16", "int64", "uint64", "bool", "complex"):
            with np.errstate(all="ignore"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                changed = numbers.astype(kind)
        elif is_number and kind == "big-endian":
            changed = numbers.astype(numbers.dtype.newbyteorder(">"))
        replace(owner, last, changed)
        return f"{name} {kind}"


def _scramble_attribute(elem: Any, random: np.random.Generator) -> str:
    if not len(elem.attrs):
        return "nothing"
    names = sorted(elem.attrs)
    name = names[random.integers(len(names))]
    kind = str(random.choice(["delete", "text", "number", "huge", "bytes", "list", "empty", "nan"]))
    if kind == "delete":
        del elem.attrs[name]
    else:
        elem.attrs[name] = {
            "text": "\x1b[2Jno such thing\n" * 3,
            "number": -7,
            "huge": 10**15,
            "bytes": np.bytes_(b"\xff\xfe"),
            "list": [1, 2, 3],
            "empty": h5py.Empty("f4"),
            "nan": np.nan,
        }[kind]
    return f"{elem.name}@{name} {kind}"


# --- answers ---------------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """How a command ended: its exit code, negative for a signal, None after a minute; and what it said on stderr."""

    code: int | None
    said: str


def run(function: Callable[[], int], folder: Path) -> Answer:
    """Run a function in a child process, in a folder; what it returns is the exit code."""
    output = folder / "stderr.txt"
    child = os.fork()
    if not child:
        code = 1
        try:
            os.chdir(folder)
            handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123
            code = function()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        except BaseException as error:  # noqa: BLE001 (told as the traceback that a user would see)
            os.write(2, f"Traceback: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            return Answer(code, output.read_text(errors="replace") if output.exists() else "")
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return Answer(None, output.read_text(errors="replace") if output.exists() else "")


def command(*arguments: str) -> Callable[[], int]:
    """Return what runs `discern` with these arguments."""

    def call() -> int:
        from discern.cli import commands

        commands.cli(list(arguments), prog_name="discern")
        return 0

    return call


def judged(answer: Answer, names: str | tuple[str, ...], refused: bool) -> str | None:
    """Return what is bad about an answer, None if nothing is.

    Args:
        answer: how the command ended.
        names: of which a refusal has to name one.
        refused: whether a refusal is due; otherwise the file may have stayed a valid one.
    """
    if answer.code is None:
        return "no end"
    if answer.code < 0:
        return f"killed by signal {-answer.code}"
    if answer.code not in (0, 2):
        return f"exit code {answer.code}"
    if answer.code == 0:
        return "accepted" if refused else None
    lines = [line for line in answer.said.splitlines() if re.match(r"\s*(error|ERROR)\b", line)]
    if len(lines) != 1:
        return f"{len(lines)} lines of error"
    if len(lines[0]) > 2000:
        return f"{len(lines[0])} characters"
    if _EXCEPTION.search(answer.said):
        return "name of an exception"
    if any(not character.isprintable() for character in lines[0]):
        return "control characters"
    if not any(name in lines[0] for name in ([names] if isinstance(names, str) else names)):
        return "does not name the file"
    return None


# --- attacks ---------------------------------------------------------------------------------------------------------


@dataclass
class Attack:
    """A changed file and the command that meets it.

    Attributes:
        kind: the row of the table that it counts for.
        name: what it is.
        prepare: gets an empty folder, makes the files there and returns what runs and the name that an error must have.
        refused: whether it must be refused.
    """

    kind: str
    name: str
    prepare: Callable[[Path], tuple[Callable[[], int], str | tuple[str, ...]]]
    refused: bool


def _copied(source: Path, folder: Path) -> Path:
    target = folder / source.name
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
    return target


def process_command(folder: Path, raw: Path, batch: str | None = None) -> Callable[[], int]:
    """Write the parameters for a raw file and return what processes it."""
    experiment = {
        "input_ds": {
            "raw_input": {raw.name: batch},
            "filtering": {"min_genes": 1, "min_cells": 1},
            "scale": {"LSN": 100, "fixed_scaling": {"mean": "genes", "var": "genes"}},
            "split": {"valid_cells": 0.2},
            "n_cpus_preprocessing": 1,
        },
        "training": {"batch_size": 8, "max_steps": 1, "parallel_pc": 1, "GPU": []},
        "model": {"latent_dim": 4, "encoder": {"layers": [8], "norm_type": ["layernorm"]}}
        | {"decoder": {"layers": [8], "norm_type": ["layernorm"]}},
    }
    content = {"exp_param": {"experiments_dir": "runs"}, "experiments": {"cells": experiment}}
    (folder / "p.json").write_text(json.dumps(content))
    return command("process", "p.json", "--without-tfrecords")


def raw_attacks(paths: dict[str, Path], lazy: bool = False) -> Iterator[Attack]:
    """Yield the planned attacks with raw files: each must be refused.

    Args:
        paths: from `write_raw`.
        lazy: whether the cells are read as those that do not fit into memory.
    """
    places = {"csr": "X", "csc": "X", "zarr2": "X", "zarr3": "X", "10x": "matrix", "old": "X"}
    if lazy:
        places = {name: places[name] for name in ("csr", "zarr2", "zarr3")}

    def attack(kind: str, source: str, name: str, change: Callable[[Path, Path], object]) -> Attack:
        def prepare(folder: Path) -> tuple[Callable[[], int], str]:
            path = _copied(paths[source], folder)
            change(path, folder)
            call = process_command(folder, path)
            return (_without_memory(call) if lazy else call), path.name

        return Attack(kind, f"{source}{' block by block' if lazy else ''}: {name}", prepare, refused=True)

    for source, group in places.items():
        for change in BROKEN_SPARSE:
            if source == "zarr3" and "text" in change:
                continue
            yield attack("sparse", source, change, lambda path, _, g=group, c=change: break_sparse(path, g, c))
        for change in BROKEN_SHAPES:
            if source == "10x" and change == "shape of text":
                continue
            yield attack("sparse", source, change, lambda path, _, g=group, c=change: break_shape(path, g, c))
        if source in ("csr", "csc"):
            other = "csc_matrix" if source == "csr" else "csr_matrix"
            yield attack("sparse", source, "the other encoding", lambda path, _, o=other: _encoded(path, o))
    if lazy:
        return
    for source, name in {
        "csr": "X/data",
        "dense": "X",
        "10x": "matrix/barcodes",
        "loom": "matrix",
        "old": "obs",
    }.items():
        for change in MALICIOUS:
            if (change, source) == ("2^40 paths", "10x"):
                continue
            yield attack(
                "malicious", source, change, lambda path, folder, n=name, c=change: _malicious(path, n, c, folder)
            )
    for source in ("zarr2", "zarr3"):
        for change in BROKEN_ZARR:
            yield attack("malicious", source, change, lambda path, folder, c=change: BROKEN_ZARR[c](path, folder))
    for source in paths:
        for change, make in NOT_FILES.items():
            yield attack("no file", source, change, lambda path, _, m=make: (_removed(path), m(path)))
    for part in ("matrix.mtx", "genes.tsv", "barcodes.tsv"):
        for change in ("named pipe", "device", "socket"):
            make = NOT_FILES[change]
            yield attack(
                "no file", "mtx", f"{part} a {change}", lambda p, _, n=part, m=make: (_removed(p / n), m(p / n))
            )
    for name, lines in BROKEN_MTX.items():
        yield attack("malicious", "mtx", name, lambda path, _, text=lines: (path / "matrix.mtx").write_text(text))


def _without_memory(call: Callable[[], int]) -> Callable[[], int]:
    def lazily() -> int:
        from discern.runtime.memory import limited

        with limited(matrix=0, block=GENES * 16):
            return call()

    return lazily


def _encoded(path: Path, encoding: str) -> None:
    with h5py.File(path, "a") as file:
        file["X"].attrs["encoding-type"] = encoding


def _malicious(path: Path, name: str, change: str, folder: Path) -> None:
    shutil.copyfile(path, folder / "elsewhere")
    with h5py.File(path, "a") as file:
        MALICIOUS[change](file, name, folder / ("elsewhere.raw" if change == "external storage" else "elsewhere"))


def _removed(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _zarr_link(path: Path, folder: Path) -> None:
    (path / "X" / "data").rename(folder / "elsewhere")
    (path / "X" / "data").symlink_to(folder / "elsewhere")


def _zarr_pipe(path: Path, folder: Path) -> None:
    chunk = next(
        file
        for file in (path / "X" / "data").rglob("*")
        if file.is_file() and file.name[0] != "." and "json" not in file.name
    )
    chunk.unlink()
    os.mkfifo(chunk)


def _metadata(path: Path, part: str) -> Path:
    """Return the file that says how an array is stored; newer versions keep texts in a group, as `values`."""
    places = (f"{part}/values", part)
    names = (".zarray", "zarr.json")
    return next(file for place in places for name in names if (file := path / place / name).exists())


def _zarr_changed(part: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], None]:
    def write(path: Path, _: Path) -> None:
        file = _metadata(path, part)
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return write


def _pickle(content: dict[str, Any]) -> None:
    if "codecs" in content:
        content["codecs"].insert(0, {"name": "numcodecs.pickle", "configuration": {}})
    else:
        content["filters"] = [{"id": "pickle", "protocol": 5}]


def _chunks(size: int) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        if "codecs" in content:
            content["chunk_grid"]["configuration"]["chunk_shape"] = [size]
        else:
            content["chunks"] = [size]

    return change


BROKEN_ZARR: dict[str, Callable[[Path, Path], None]] = {
    "link inside": _zarr_link,
    "named pipe inside": _zarr_pipe,
    "pickle codec": _zarr_changed("X/data", _pickle),
    "pickle codec of names": _zarr_changed("obs/_index", _pickle),
    "enormous chunk": _zarr_changed("X/indices", _chunks(10**12)),
    "negative chunk": _zarr_changed("X/indices", _chunks(-5)),
    "enormous names": _zarr_changed("var/_index", lambda content: content.update(shape=[10**12])),
    "enormous indptr": _zarr_changed("X/indptr", lambda content: content.update(shape=[10**12])),
    "shape of text": _zarr_changed("X/data", lambda content: content.update(shape=["many"])),
    "metadata no JSON": lambda path, _: _metadata(path, "X/data").write_text("{"),
    "metadata nested": lambda path, _: _metadata(path, "X/data").write_text("[" * 100_000),
}

_MTX = "%%MatrixMarket matrix coordinate integer general\n"
BROKEN_MTX = {
    "index too high": f"{_MTX}{GENES} {CELLS} 2\n1 1 3\n{GENES + 1} 2 4\n",
    "index 0": f"{_MTX}{GENES} {CELLS} 2\n1 1 3\n0 2 4\n",
    "index negative": f"{_MTX}{GENES} {CELLS} 2\n1 1 3\n-1 2 4\n",
    "fewer entries": f"{_MTX}{GENES} {CELLS} 3\n1 1 3\n2 2 4\n",
    "more entries": f"{_MTX}{GENES} {CELLS} 1\n1 1 3\n2 2 4\n",
    "enormous": f"{_MTX}{10**14} {10**14} 2\n1 1 3\n2 2 4\n",
    "enormous number of entries": f"{_MTX}{GENES} {CELLS} {10**15}\n1 1 3\n",
    "enormous cells": f"{_MTX}{GENES} {10**12} 1\n1 1 3\n",
    "text": f"{_MTX}{GENES} {CELLS} 1\n1 1 three\n",
    "complex": f"{_MTX.replace('integer', 'complex')}{GENES} {CELLS} 1\n1 1 3 1\n",
    "no header": "1 1 3\n",
}


def random_raw_attacks(paths: dict[str, Path], number: int, seed: int) -> Iterator[Attack]:
    """Yield random changes of raw files, which may stay valid."""
    formats = sorted(paths)
    for one in range(number):
        source = formats[one % len(formats)]

        def prepare(folder: Path, source: str = source, one: int = one) -> tuple[Callable[[], int], tuple[str, ...]]:
            path = _copied(paths[source], folder)
            scramble(path, np.random.default_rng((seed, one)))
            # what has been read well and is no count, or too little, is told by the name of the input or the parameter
            return process_command(folder, path), (path.name, f"{source}: expected counts", "filtering.min_", "split.")

        yield Attack("random raw", f"{source} {one}", prepare, refused=False)


def make_experiment(folder: Path) -> Path:
    """Process and train the cells in a child process; returns the folder with `p.json` and `runs/cells`."""
    folder.mkdir(exist_ok=True)
    raw = folder / "cells.h5ad"
    make_cells().write_h5ad(raw)
    call = process_command(folder, raw, "batch")
    for step in (call, command("train", "p.json"), *_COMMANDS.values()):
        answer = run(step, folder)
        if answer.code != 0:
            raise SystemExit(f"the experiment to attack cannot be made: {answer}")
    return folder


_COMMANDS = {
    "project": command("project", "p.json", "--metadata", "batch:one", "--layers", "X"),
    "info": command("info", "runs/cells"),
}
MODEL, PROCESSED = "runs/cells/job/last_model.h5", "runs/cells/processed_data/concatenated_data.h5ad"


def _values(name: str, value: float) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        values = file[name][...]
        values.flat[0] = value
        file[name][...] = values

    return change


def _attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__(name, value)


def _other(name: str, function: Callable[[np.ndarray], Any]) -> Callable[[h5py.File], None]:
    return lambda file: replace(file[name].parent, name.rpartition("/")[2], function(file[name][...]))


def _momentum(value: float) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        name = next(name for name in file["optimizer"] if name.endswith("_velocity"))
        _values(f"optimizer/{name}", value)(file)

    return change


_KERNEL = "weights/encoder_dense_0/kernel"
BROKEN_MODELS: dict[str, Callable[[h5py.File], None]] = {
    **{f"weight {value}": _values(_KERNEL, value) for value in (np.nan, np.inf, -np.inf, 1e38, -1e30)},
    **{f"state {value}": _momentum(value) for value in (np.nan, np.inf, 1e38, -1.0)},
    **{f"mean {value}": _values("scaling/mean", value) for value in (np.nan, np.inf, 1e38)},
    **{f"std {value}": _values("scaling/std", value) for value in (np.nan, 0.0, -1.0, np.inf)},
    **{f"epoch {value}": _attribute("epoch", value) for value in (-1, 10**15, 1.5, "three", np.nan)},
    **{f"n_genes {value}": _attribute("n_genes", value) for value in (-1, 0, GENES + 1, 10**12, "x", 1.5)},
    **{f"n_labels {value}": _attribute("n_labels", value) for value in (-1, 0, 5, 10**12, "x")},
    **{f"cells {value}": _attribute("total_number_cells", value) for value in (-1, 0, np.nan, np.inf, "x")},
    **{f"format {value}": _attribute("format_version", value) for value in (3, 10**9, 0, -1, np.nan, "two", 1.5)},
    **{f"no {name}": (lambda file, n=name: file.attrs.__delitem__(n)) for name in ("epoch", "n_genes", "n_labels")},
    "weight is text": _other(_KERNEL, lambda values: values.astype("S")),
    "weight is whole numbers": _other(_KERNEL, lambda values: values.astype(int)),
    "weight is complex": _other(_KERNEL, lambda values: values.astype(complex)),
    "weight of another shape": _other(_KERNEL, lambda values: values.T),
    "weight is lacking": lambda file: file.__delitem__(_KERNEL),
    "layer is lacking": lambda file: file.__delitem__("weights/encoder_dense_0"),
    "layer too many": lambda file: file.__setitem__("weights/another/kernel", np.zeros((3, 3), "f4")),
    "no weights": lambda file: file.__delitem__("weights"),
    "weights no group": lambda file: (file.__delitem__("weights"), file.__setitem__("weights", 3))[0],
    "genes too few": _other("genes", lambda values: values[:-1]),
    "genes other": _other("genes", lambda values: values[::-1]),
    "gene twice": _other("genes", lambda values: np.array([values[0], *values[:-1]], dtype=object)),
    "genes numbers": _other("genes", lambda values: np.arange(len(values))),
    "batches too many": _other("batches", lambda values: np.array([*values, b"three"], dtype=object)),
    "scaling too short": _other("scaling/std", lambda values: values[:-1]),
    "scaling of text": _other("scaling/std", lambda values: values.astype("S")),
    "no std": lambda file: file.__delitem__("scaling/std"),
    "iteration negative": _other("optimizer/iteration", lambda values: np.int64(-3)),
    "iteration a list": _other("optimizer/iteration", lambda values: np.arange(3)),
}

BROKEN_PROCESSED: dict[str, Callable[[h5py.File], None]] = {
    **{f"value {value}": _values("X/data", value) for value in (np.nan, np.inf, 1e38)},
    **{f"mean {value}": _values("var/mean_scaling", value) for value in (np.nan, np.inf)},
    **{f"std {value}": _values("var/var_scaling", value) for value in (np.nan, 0.0, -1.0, np.inf)},
    **{
        f"format {value}": (lambda file, v=value: replace(file["uns/DISCERN_format"], "version", v))
        for value in (3, 10**9, 0, -1, np.nan, "two")
    },
    "format no mapping": lambda file: replace(file["uns"], "DISCERN_format", "future", keep=False),
    "no batch": lambda file: (
        file.__delitem__("obs/batch"),
        file["obs"].attrs.__setitem__("column-order", [n for n in file["obs"].attrs["column-order"] if n != "batch"]),
    )[0],
    "no mean": lambda file: (
        file.__delitem__("var/mean_scaling"),
        file["var"].attrs.__setitem__(
            "column-order", [n for n in file["var"].attrs["column-order"] if n != "mean_scaling"]
        ),
    )[0],
    "no batch key": lambda file: file["uns/DISCERN"].__delitem__("batch_key"),
    "batch_key of others": lambda file: replace(file["uns/DISCERN/batch_key"], "0", "other"),
    "batch_key twice": lambda file: replace(file["uns/DISCERN/batch_key"], "0", "two"),
    "batch code too high": _values("obs/batch/codes", 100),
    "no DISCERN": lambda file: file["uns"].__delitem__("DISCERN"),
    "no X": lambda file: file.__delitem__("X"),
    "no obs": lambda file: file.__delitem__("obs"),
    "no uns": lambda file: file.__delitem__("uns"),
    "mean of text": _other("var/mean_scaling", lambda values: values.astype("S")),
}


def experiment_attacks(experiment: Path, random_number: int, seed: int) -> Iterator[Attack]:
    """Yield attacks with models and processed cells, planned and random."""
    project, info = _COMMANDS.values()

    def attack(
        kind: str, name: str, file: str, call: Callable[[], int], change: Callable[[Path], object], refused: bool = True
    ) -> Attack:
        def prepare(folder: Path) -> tuple[Callable[[], int], tuple[str, ...]]:
            shutil.copytree(experiment, folder, dirs_exist_ok=True)
            (folder / "runs/cells/job/best_model.h5").unlink(missing_ok=True)
            change(folder / file)
            return call, (Path(file).name, "cells: ")

        return Attack(kind, name, prepare, refused)

    def within(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            with h5py.File(path, "a") as file:
                change(file)

        return write

    for name, change in BROKEN_MODELS.items():
        yield attack("model", name, MODEL, project, within(change))
    for name, change in BROKEN_PROCESSED.items():
        yield attack("processed", name, PROCESSED, project, within(change))
    for name in BROKEN_SPARSE:
        yield attack("processed", name, PROCESSED, project, lambda path, c=name: break_sparse(path, "X", c))
    for name in BROKEN_SHAPES:
        yield attack("processed", name, PROCESSED, project, lambda path, c=name: break_shape(path, "X", c))
    for name in MALICIOUS:
        for file, place in ((MODEL, _KERNEL), (PROCESSED, "X/data")):
            for call in (project, info):
                yield attack(
                    "malicious",
                    f"{Path(file).name} {name}",
                    file,
                    call,
                    lambda path, n=name, p=place: _malicious(path, p, n, path.parent),
                    refused=call is project or file == MODEL or "enormous" not in name,  # info reads no values of cells
                )
    for one in range(random_number):
        file, call = (MODEL, PROCESSED)[one % 2], (project, info, project)[one % 3]
        yield attack(
            "random experiment", f"{Path(file).name} {one}", file, call,
            lambda path, n=one: scramble(path, np.random.default_rng((seed, n))), refused=False,
        )  # fmt: skip


def play(attack: Attack, folder: Path) -> tuple[str | None, Answer]:
    """Make the attack in an empty folder; returns what is bad about the answer, and the answer."""
    call, names = attack.prepare(folder)
    answer = run(call, folder)
    return judged(answer, names, attack.refused), answer


def attacks(folder: Path, only: str, random: int, seed: int) -> Iterator[Attack]:
    """Write the files to attack with into a folder and yield all attacks.

    Args:
        folder: an empty folder.
        only: "raw", "experiment" or "all".
        random: number of random attacks of each of both.
        seed: of these.
    """
    if only != "experiment":
        paths = write_raw(folder)
        yield from raw_attacks(paths)
        yield from raw_attacks(paths, lazy=True)
        yield from random_raw_attacks(paths, random, seed)
    if only != "raw":
        yield from experiment_attacks(make_experiment(folder / "experiment"), random, seed)


def main() -> int:
    """Make all attacks and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0, help="of the random attacks")
    parser.add_argument(
        "--random", type=int, default=400, help="number of random attacks with raw files, and with others"
    )
    parser.add_argument("--only", choices=["raw", "experiment", "all"], default="all")
    parser.add_argument("--match", default="", help="only attacks with this in their names")
    parser.add_argument("--show", action="store_true", help="print every answer")
    parser.add_argument("--results", type=Path, help="JSON file to add the figures to")
    options = parser.parse_args()
    import discern.experiment.process
    import discern.preprocessing.recipe  # noqa: F401 (once, for all child processes)

    warnings.simplefilter("ignore")
    tried: collections.Counter[str] = collections.Counter()
    bad: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as place:
        files = Path(place, "files")
        files.mkdir()
        for attack in attacks(files, options.only, options.random, options.seed):
            if options.match not in attack.name:
                continue
            with tempfile.TemporaryDirectory(dir=place) as folder:
                fault, answer = play(attack, Path(folder))
            tried[attack.kind] += 1
            bad[attack.kind] += fault is not None
            if fault is not None or options.show:
                said = " | ".join(answer.said.strip().splitlines()[-4:])
                print(
                    f"{'BAD ' if fault else ''}{attack.kind} / {attack.name}: {fault}: {answer.code}: {said[-700:]}",
                    flush=True,
                )
    print("\n| attack | tried | badly answered |\n|---|---|---|")
    for kind, number in tried.items():
        print(f"| {kind} | {number} | {bad[kind]} |")
    if options.results:
        from record import record

        command = f"python benchmarks/attacks_files.py --seed {options.seed} --random {options.random}"
        rows = {f"files: {kind}": {"tried": tried[kind], "badly answered": bad[kind]} for kind in tried}
        record(options.results, rows, command)
    return int(sum(bad.values()) > 0)


if __name__ == "__main__":
    sys.exit(main())

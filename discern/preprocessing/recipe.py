"""From raw counts to what the network learns from: filtered, normalised, split and described.

Statistics of genes (mean, standard deviation, dispersion, principal components) come from the cells that are not set
aside for testing (`input_ds.split.test_cells`).
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from discern.config.reading import check_experiment, load_parameters, parse_experiment, read_json
from discern.config.schema import Experiment
from discern.data.annotation import as_text, check_columns
from discern.data.chunks import is_lazy, track_blocks
from discern.data.processed import FORMAT, LEFT_OUT, DISCERNData
from discern.data.records import write_records
from discern.data.writers import write_blocks
from discern.errors import InvalidInputError, UnknownNameError
from discern.folder.layout import ExperimentFolder
from discern.inputs import raw_counts
from discern.inputs.gene_names import only_genes
from discern.inputs.labels import label_column
from discern.inputs.merging import BatchColumn, Source, batch_key, merge_data_sets, sources
from discern.inputs.readers import dataset_name, read_raw_inputs
from discern.preprocessing.gene_statistics import (
    GeneStatistics,
    dispersion_record,
    neighbour_distance,
    standardised,
)
from discern.runtime.atomic import replacing
from discern.runtime.devices import clamp_cpus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from discern.config.fields import JsonObject
    from discern.data.structure import Findings

_LOGGER = logging.getLogger(__name__)


_UNNAMED = "input"


class WAERecipe:
    """Preprocessing of raw counts, step by step or, called, all steps in their order.

    Args:
        params: EXPERIMENT of a parameter file, or its section "input_ds".
        inputs: Raw counts in memory, not modified: by name, or one AnnData whose obs has the column `batch`.
        input_files: Beside or in place of `inputs`: list of paths, or {path: obs column with the batch, or {"batch":
            column, "layer": name}}, see `discern.inputs.merging.Source`; by default `input_ds.raw_input`, if there
            are no `inputs`. As a mapping it may name `inputs` as well.
        n_jobs: CPUs to use, -1 for all.

    Attributes:
        sc_raw: The cells as far as they are processed, a `DISCERNData`. X is CSR, or a dask array of CSR blocks if it
            does not fit into memory; raw counts, normalised by `scaling`, logged at the end of `__call__`. Its
            `batch_size` is `training.batch_size` of the parameters, but at most the number of validation cells.
        params: The section "input_ds", validated.

    Raises:
        InvalidInputError: If there is nothing to read, or it cannot be used.
        MissingFileError: If an input is not there.

    Example:
        >>> from discern.datasets import lung_cell_lines
        >>> recipe = WAERecipe({"filtering": {"min_genes": 400}}, input_files=lung_cell_lines().values())
        >>> recipe.filtering(min_genes=5000, min_cells=3)
        >>> recipe.sc_raw.shape, recipe.config["batch_key"]
        ((381, 15073), {'0': 'celseq2', '1': 'dropseq'})
        >>> recipe
        <WAERecipe: 381 cells x 15,073 genes, 2 batches, raw counts>
    """

    _taken: GeneStatistics | None = None  # those of another experiment

    def __init__(
        self,
        params: Mapping[str, object] | Experiment,
        inputs: Mapping[str, ad.AnnData] | ad.AnnData | None = None,
        input_files: Sequence[str | Path] | Mapping[str, object] | None = None,
        n_jobs: int = -1,
    ):
        if not isinstance(params, Experiment):
            check_experiment(params)
            params = parse_experiment(params if "input_ds" in params else {"input_ds": dict(params)})
        self._experiment = params
        self.params: JsonObject = params.input_ds.as_dict()
        self._n_jobs = n_jobs
        unnamed = isinstance(inputs, ad.AnnData)
        inputs = {_UNNAMED: inputs} if isinstance(inputs, ad.AnnData) else dict(inputs or {})
        if input_files is None and not inputs:
            input_files = self.params.get("raw_input")
        wanted = sources(input_files)
        if unnamed:
            wanted.setdefault(_UNNAMED, Source("batch"))
        files = {file: source for file, source in wanted.items() if file not in inputs}
        cells = {**_chosen(inputs, wanted), **_read_all(files)}
        if not cells:
            raise InvalidInputError("expected cells: neither inputs, nor input_files, nor input_ds.raw_input has any")
        self._inputs = {dataset_name(key): key for key in cells}
        self._raw_input = {name: _as_written(wanted.get(name, Source())) for name in cells}
        self.sc_raw = self._of_recipe(self._merged(cells, {key: source.batch for key, source in wanted.items()}))

    def __repr__(self) -> str:
        cells = self.sc_raw
        state = "log-normalised" if self._is_logged else "normalised" if "scale" in self.config else "raw counts"
        batches = cells.obs["batch"].nunique()
        return f"<{type(self).__name__}: {cells.n_obs:,} cells x {cells.n_vars:,} genes, {batches} batches, {state}>"

    def _of_recipe(self, adata: ad.AnnData) -> DISCERNData:
        return DISCERNData.in_progress(adata, self._experiment.training.batch_size)

    def _merged(self, inputs: Mapping[str, ad.AnnData], columns: Mapping[str, BatchColumn]) -> ad.AnnData:
        merged, _ = merge_data_sets(inputs, columns)
        return merged

    @classmethod
    def from_path(cls, job_dir: str | Path) -> WAERecipe:
        """Make the recipe of an experiment and read its raw data.

        Args:
            job_dir: Folder of the experiment, with `parameters.json`; raw paths in it are relative to the current
                folder.
        """
        (experiment,) = load_parameters(ExperimentFolder(Path(job_dir)).parameters).experiments.values()
        return cls(experiment, n_jobs=clamp_cpus(experiment.input_ds.n_cpus_preprocessing, "n_cpus_preprocessing"))

    @property
    def config(self) -> Findings:
        """What is found out on the way (`uns["DISCERN"]`); what of it there is depends on the steps done."""
        found: Findings = self.sc_raw.uns["DISCERN"]
        return found

    @property
    def _components(self) -> int:
        """How many principal components there will be."""
        return 32 if self._taken is None else self._taken.components.shape[1]

    def __call__(self) -> WAERecipe:
        """Do all steps as the parameters say.

        Returns:
            The recipe itself, with the processed cells in `sc_raw`.
        """
        scale, split = self.params.get("scale", {}), self.params["split"]
        self.filtering(**self.params["filtering"])
        self.celltypes()
        if "LSN" in scale:
            self.scaling(scale["LSN"])
        self.split(split["split_seed"], split["valid_cells"], split["mmd_cells"], split["test_cells"])
        self.projection_pca(pcs=self._components)
        self._log1p()
        self.kernel_mmd(neighbors_mmd=50, no_cells_mmd=10000)
        self._record_dispersions()
        self.mean_var_scaling()
        return self

    def filtering(self, min_genes: int, min_cells: int) -> None:
        """Keep the cells with enough genes, then the genes that are in enough of these cells.

        Adds obs `n_genes` and var `n_cells`. Batches that lose all their cells are left out, with a warning.

        Args:
            min_genes: A cell is kept if it has at least so many genes.
            min_cells: A gene is kept if at least so many of the kept cells have it.

        Raises:
            InvalidInputError: If counts are negative or not finite, or nothing is left.
        """
        adata = self.sc_raw
        n_genes = np.zeros(adata.n_obs, dtype=np.int64)
        n_cells = np.zeros(adata.n_vars, dtype=np.int64)
        not_whole: set[str] = set()
        for rows, block in track_blocks(adata.X, "filtering"):
            if (wrong := _not_counts(block.data)) is not None:
                names = ", ".join(self._inputs_of(rows, block, wrong[0]))
                raise InvalidInputError(f"{names}: expected raw counts, some are {wrong[1]}")
            if (fractions := block.data != np.floor(block.data)).any():
                not_whole.update(self._inputs_of(rows, block, fractions))
            n_genes[rows] = np.diff(block.indptr)
            kept = block[n_genes[rows] >= min_genes]
            n_cells += np.bincount(kept.indices, minlength=adata.n_vars)
        if not_whole:
            warnings.warn(
                f"{', '.join(sorted(not_whole))}: the counts are not whole numbers: raw counts are expected; have they "
                "been normalised already?",
                stacklevel=2,
            )
        self._check_not_empty(n_genes)
        cells, genes = n_genes >= min_genes, n_cells >= min_cells
        if not cells.any():
            raise InvalidInputError(
                f"filtering.min_genes: expected cells with {min_genes} or more genes, the best of {adata.n_obs} cells "
                f"has {n_genes.max(initial=0)}; lower it"
            )
        if not genes.any():
            raise InvalidInputError(
                f"filtering.min_cells: expected genes in {min_cells} or more of the {int(cells.sum())} cells left, the "
                f"most frequent gene is in {n_cells.max(initial=0)}; lower it"
            )
        _LOGGER.info(
            "filtering: %d of %d cells and %d of %d genes kept", cells.sum(), cells.size, genes.sum(), genes.size
        )
        X = adata.X if cells.all() else adata.X[np.flatnonzero(cells)]
        X = X if genes.all() else X[:, np.flatnonzero(genes)]
        obs, var = adata.obs[cells].copy(), adata.var[genes].copy()
        obs["n_genes"], var["n_cells"] = n_genes[cells], n_cells[genes]
        left_out = _names_of_genes(adata.var[~genes], adata.uns.get(LEFT_OUT))
        lost = sorted(set(obs["batch"].cat.categories) - set(obs["batch"]))
        if lost:
            warnings.warn(f"no cell of the batches {lost} has {min_genes} genes: they are left out", stacklevel=2)
        for column in obs.select_dtypes("category"):
            obs[column] = obs[column].cat.remove_unused_categories()
        uns = {**adata.uns, "DISCERN": {**self.config, "batch_key": batch_key(obs["batch"].cat.categories)}}
        if len(left_out):
            uns[LEFT_OUT] = left_out
        self.sc_raw = self._of_recipe(ad.AnnData(X=X, obs=obs, var=var, uns=uns))

    @property
    def _input_of_cells(self) -> pd.Categorical:
        """The name of each cell's input."""
        obs = self.sc_raw.obs
        found: pd.Categorical = obs["discern_dataset" if "discern_dataset" in obs else "dataset"].array
        return found

    def _inputs_of(self, rows: slice, block: sparse.csr_matrix, wrong: np.ndarray) -> list[str]:
        """Return the inputs of the cells of a block that some of its values are of."""
        cells = np.unique(np.searchsorted(block.indptr, np.flatnonzero(wrong), side="right") - 1)
        return [self._inputs.get(name, name) for name in self._input_of_cells[rows][cells].unique()]

    def _check_not_empty(self, n_genes: np.ndarray) -> None:
        """Raise InvalidInputError if an input has no count at all."""
        found = pd.Series(n_genes).groupby(self._input_of_cells.codes).max()
        empty = [self._inputs.get(name, name) for name in self._input_of_cells.categories[found.index[found == 0]]]
        if empty:
            raise InvalidInputError(f"{', '.join(empty)}: expected raw counts, all are 0")

    def celltypes(self) -> None:
        """Make obs `celltype` categorical; without one, it becomes a copy of `cluster_names` or `cluster`.

        There is no copy where another column says by its name that it holds cell types, see
        `discern.inputs.labels.label_column`.
        """
        obs = self.sc_raw.obs
        column = next((name for name in ("celltype", "cluster_names", "cluster") if name in obs), None)
        if column is not None and (column == "celltype" or label_column(obs) in (None, column)):
            obs["celltype"] = as_text(obs[column])

    def scaling(self, scale: float) -> None:
        """Scale each cell to the same total counts (library size normalisation).

        Adds obs `n_counts` (totals before) and `config["scale"]["LSN"]`.

        Args:
            scale: Total counts wanted, LSN.

        Raises:
            InvalidInputError: If it is not a positive number.
        """
        if not 0 < scale < math.inf:
            raise InvalidInputError(f"scale.LSN: expected a positive number, got {scale}")
        adata = self.sc_raw
        if is_lazy(adata.X):
            totals = np.concatenate([_totals(block) for _, block in track_blocks(adata.X, "total counts")])
            X = adata.X.map_blocks(_normalised, scale, dtype=np.float32, meta=_META)
        else:
            totals = _totals(adata.X)
            X = _normalised(adata.X, scale)
        adata.X = X
        adata.obs["n_counts"] = totals.astype(np.float32)
        self.config["scale"] = {"LSN": scale}

    def split(
        self, split_seed: int, valid_cells_ratio: float, mmd_cells_ratio: float = 1.0, test_cells_ratio: float = 0
    ) -> None:
        """Choose the validation cells (and test cells) of each batch, and among the former those for the search's MMD.

        Adds obs `split` (train, valid, test) and `for_mmd`, and the numbers of cells to `config`.

        Args:
            split_seed: Of all choices.
            valid_cells_ratio: Share of each batch; a whole number above 1 is the number of cells of all batches
                together, shared out in proportion (with a warning). With 0 there are none: training uses all cells.
            mmd_cells_ratio: Share of the validation cells, drawn with the frequency of their batch and cell type.
            test_cells_ratio: Share of each batch that nothing is learned from; as `valid_cells_ratio`.

        Raises:
            UnsupportedError: If an obs column name occurs twice.
            InvalidInputError: If no cell would be left to train on or to validate with, or `mmd_cells_ratio` is not
                between 0 and 1.
        """
        adata = self.sc_raw
        check_columns(adata.obs)
        if not 0 <= mmd_cells_ratio <= 1:
            raise InvalidInputError(
                f"split.mmd_cells: expected a share of the validation cells, 0 to 1, got {mmd_cells_ratio}"
            )
        valid_ratio = self._share("valid_cells", valid_cells_ratio)
        test_ratio = self._share("test_cells", test_cells_ratio)
        if valid_ratio + test_ratio >= 1:
            raise InvalidInputError(
                "split: expected cells to train on, but "
                f" valid_cells {valid_cells_ratio} and test_cells {test_cells_ratio} take all"
            )
        batch = adata.obs["batch"].to_numpy(dtype=str)
        names = np.unique(batch)
        if len(names) == 1:
            warnings.warn(f"all cells are of one batch, {names[0]}: there is none to reconstruct them as", stacklevel=2)
        members = {str(name): np.flatnonzero(batch == name) for name in names}
        random = np.random.RandomState(split_seed)  # the published splits were drawn with this generator
        split = np.full(adata.n_obs, "train", dtype=object)
        for part, ratio in (("valid", valid_ratio), ("test", test_ratio)):
            for cells in members.values():
                free = cells[split[cells] == "train"]
                split[random.choice(free, size=int(ratio * len(cells)), replace=False)] = part
        if valid_ratio > 0:
            self._check_split(members, split)
        adata.obs["split"] = pd.Categorical(split)
        adata.obs["for_mmd"] = _for_mmd(adata.obs, mmd_cells_ratio, split_seed)
        counts = {part: {name: int((split[cells] == part).sum()) for name, cells in members.items()} for part in _PARTS}
        self.config.update(
            {
                "valid_cells_no": counts["valid"],
                "train_cells_no": counts["train"],
                "batch_ratios": {name: len(cells) / adata.n_obs for name, cells in members.items()},
                "total_count": adata.n_obs,
                "common_genes_count": adata.n_vars,
                "total_train_count": sum(counts["train"].values()),
                "total_valid_count": sum(counts["valid"].values()),
            }
        )

    def _share(self, name: str, ratio: float) -> float:
        if not ratio >= 0:
            raise InvalidInputError(f"split.{name}: expected a share or a number of cells, 0 or more, got {ratio}")
        if ratio <= 1:
            return ratio
        if ratio >= self.sc_raw.n_obs:
            raise InvalidInputError(f"split.{name}: expected less than the {self.sc_raw.n_obs} cells, got {ratio}")
        warnings.warn(f"split.{name} is {ratio}, more than 1: taken as a number of cells of all batches", stacklevel=3)
        return float(ratio / self.sc_raw.n_obs)

    def _check_split(self, members: Mapping[str, np.ndarray], split: np.ndarray) -> None:
        if not (split == "valid").any():
            raise InvalidInputError(
                "split.valid_cells: expected a validation cell in some batch, the largest has only "
                f"{max(map(len, members.values()))} cells; raise it"
            )
        small = [name for name, cells in members.items() if not (split[cells] == "valid").any()]
        if small:
            warnings.warn(f"the batches {small} are too small to have a validation cell", stacklevel=3)

    @property
    def _learned_from(self) -> np.ndarray:
        """Which cells statistics are of: all that are not set aside for testing, bool of shape (n_cells,)."""
        obs = self.sc_raw.obs
        return (obs["split"] != "test").to_numpy() if "split" in obs else np.ones(len(obs), dtype=bool)

    def projection_pca(self, pcs: int = 25) -> None:
        """Describe each gene and find the principal components of the 1000 most variable ones.

        Adds var `mean_scaling` and `var_scaling` (mean and, in spite of the name, *standard deviation* of the
        log-normalised values), `pca_genes`, and varm `PCs` (zero for other genes). The components are those of the
        standardised values, as scikit-learn's arpack PCA finds them, but for their sign.

        Args:
            pcs: Number of components; fewer if there are not enough cells or genes.

        Raises:
            InvalidInputError: If it is less than 1.
        """
        if pcs < 1:
            raise InvalidInputError(f"pcs: expected 1 or more principal components, got {pcs}")
        adata, taken = self.sc_raw, self._taken
        if taken is None:
            found = GeneStatistics.learn(adata, self._learned_from, self._is_logged, pcs)
            adata.var = adata.var.assign(**found.var)
            adata.varm["PCs"] = found.components
            return
        if pcs != self._components:
            raise InvalidInputError(
                f"pcs: expected {self._components}, the number of principal components of the reference, got {pcs}"
            )
        adata.var = taken.var.copy()
        adata.varm["PCs"] = taken.components

    @property
    def _is_logged(self) -> bool:
        return "log1p" in self.sc_raw.uns

    def _log1p(self) -> None:
        """Log-transform X: log(1 + x)."""
        X = self.sc_raw.X
        self.sc_raw.X = X.map_blocks(_logged, dtype=np.float32, meta=_META) if is_lazy(X) else _logged(X)
        self.sc_raw.uns.update(log1p={}, DISCERN_format=dict(FORMAT))

    def kernel_mmd(self, neighbors_mmd: int = 50, no_cells_mmd: int = 2000) -> None:
        """Find the width of the kernel with which the search compares cells.

        `config["mmd_kernel"]["all"]` becomes the squared median over cells of the mean distance to their nearest
        neighbours, in the space of the principal components.

        Args:
            neighbors_mmd: Number of neighbours, the cell itself among them; at most half of the cells.
            no_cells_mmd: Number of cells to look at, drawn at random if there are more.

        Raises:
            UnknownNameError: If `projection_pca` has not been done.
            InvalidInputError: If a number is less than 1.
        """
        for name, number in (("neighbors_mmd", neighbors_mmd), ("no_cells_mmd", no_cells_mmd)):
            if number < 1:
                raise InvalidInputError(f"{name}: expected 1 or more, got {number}")
        if self._taken is not None:
            self.config["mmd_kernel"] = dict(self._taken.mmd_kernel)
            return
        adata = self.sc_raw
        if "PCs" not in adata.varm:
            raise UnknownNameError("expected principal components; call projection_pca before kernel_mmd")
        cells = np.flatnonzero(self._learned_from)
        if len(cells) > no_cells_mmd:
            random = np.random.default_rng(self.params["split"]["split_seed"])
            cells = np.sort(random.choice(cells, size=no_cells_mmd, replace=False))
        columns = np.flatnonzero(adata.var["pca_genes"])
        axes = adata.varm["PCs"][columns]
        mean, std = (adata.var[name].to_numpy()[columns] for name in ("mean_scaling", "var_scaling"))
        points = np.concatenate(
            [
                standardised(block[_inside(cells, rows)][:, columns], mean, std, self._is_logged) @ axes
                for rows, block in track_blocks(adata.X, "kernel width")
            ]
        )
        neighbours = math.ceil(min(len(cells) / 2, neighbors_mmd))
        self.config["mmd_kernel"] = {"all": neighbour_distance(points, neighbours, self._n_jobs) ** 2}

    def _record_dispersions(self) -> None:
        """Add var `means`, `dispersions`, `dispersions_norm` and `highly_variable` of the log-normalised values."""
        if self._taken is not None:
            return
        var, cells = self.sc_raw.var, int(self._learned_from.sum())
        variance = var["var_scaling"].to_numpy() ** 2 * (cells / max(1, cells - 1))
        record = dispersion_record(var["mean_scaling"].to_numpy(), variance)
        self.sc_raw.var = var.assign(**record.set_index(var.index))

    def mean_var_scaling(self) -> None:
        """Record in `uns["fixed_scaling"]` how the parameters want values standardised where they enter the network.

        X stays sparse and log-normalised.
        """
        fixed = self.params.get("scale", {}).get("fixed_scaling")
        if fixed is not None:
            self.sc_raw.uns.update(fixed_scaling=dict(fixed), DISCERN_format=dict(FORMAT))

    def dump(self, job_dir: str | Path) -> None:
        """Write the processed cells and the parameters to the folder of an experiment.

        Args:
            job_dir: The folder; gets `processed_data/concatenated_data.h5ad` and, unless there is one with the same
                `input_ds`, `parameters.json`.
        """
        if not self._is_logged:
            warnings.warn(
                "the cells are not logged: call the recipe, or scanpy.pp.log1p(sc_raw), before they are trained on",
                stacklevel=2,
            )
        elif "DISCERN_format" not in self.sc_raw.uns:
            self.sc_raw.uns["DISCERN_format"] = dict(FORMAT)  # logged by scanpy
        adata, file = self.sc_raw, ExperimentFolder(Path(job_dir)).parameters
        parameters = self._parameters_for(file)
        blocks = ({"X": block} for _, block in track_blocks(adata.X, "writing cells"))
        write_blocks(ExperimentFolder(Path(job_dir)).cells, adata, blocks)
        if parameters is not None:
            with replacing(file) as partial:
                partial.write_text(json.dumps(parameters, indent=4) + "\n")

    def _parameters_for(self, file: Path) -> JsonObject | None:
        """Return the experiment with the raw data that was read; None if the file says the same already."""
        named = any(column is not None for column in self._raw_input.values())
        section = {**self.params, "raw_input": self._raw_input if named else list(self._raw_input)}
        if not file.exists():
            return self._experiment.as_dict() | {"input_ds": section}
        content = read_json(file)
        if parse_experiment(content).input_ds.as_dict() in (section, self.params):
            return None
        _LOGGER.warning("%s: is of another preprocessing; its input_ds is replaced", file)
        return {**content, "input_ds": section}

    def dump_tf_records(self, path: str | Path) -> None:
        """Write the training and validation cells as record files, for streaming.

        Args:
            path: Folder to write, `TF_records` of an experiment.
        """
        write_records(self.sc_raw, Path(path), seed=self.params["split"]["split_seed"])


def read_process_serialize(job_path: str | Path, with_tfrecords: bool = True) -> None:
    """Process the raw data of an experiment and write what training needs.

    Args:
        job_path: Folder of the experiment, with `parameters.json`. Gets `processed_data/concatenated_data.h5ad` and
            `TF_records/`.
        with_tfrecords: Whether to write the latter.
    """
    recipe = WAERecipe.from_path(job_path)()
    recipe.dump(job_path)
    if with_tfrecords:
        recipe.dump_tf_records(ExperimentFolder(Path(job_path)).records)


def _read_all(wanted: Mapping[str, Source]) -> dict[str, ad.AnnData]:
    """Read all files; what does not fit into memory together is read later."""
    inputs = read_raw_inputs(wanted, layers={file: source.layer for file, source in wanted.items()})
    for file, cells in inputs.items():
        raw_counts.check(file, Path(file), cells.X, wanted[file].layer)
    return inputs


def _as_written(source: Source) -> BatchColumn | dict[str, BatchColumn]:
    """Return what a parameter file says of an input."""
    return source.batch if source.layer is None else {"batch": source.batch, "layer": source.layer}


def _chosen(inputs: Mapping[str, ad.AnnData], wanted: Mapping[str, Source]) -> dict[str, ad.AnnData]:
    """Return cells in memory with their counts as X."""
    cells = {}
    for key, adata in inputs.items():
        layer = wanted.get(key, Source()).layer
        cells[key] = only_genes(raw_counts.chosen(adata, layer, key) if layer is not None else adata, key)
        raw_counts.check(key, adata, cells[key].X, layer)
    return cells


_META = sparse.csr_matrix((0, 0), dtype=np.float32)
"""Tells dask what the chunks are."""

_PARTS = ("train", "valid", "test")


def _not_counts(values: np.ndarray) -> tuple[np.ndarray, str] | None:
    """Return which values cannot be counts, and what is wrong with them."""
    if not np.isfinite(values).all():
        return ~np.isfinite(values), "not finite (NaN or infinity)"
    if values.size and (smallest := values.min()) < 0:
        return values < 0, f"negative, the smallest is {smallest:g}"
    return None


def _names_of_genes(var: pd.DataFrame, before: pd.DataFrame | None) -> pd.DataFrame:
    """Return genes with those columns of their annotation that are text, after others that were left out before."""
    names = var[[column for column in var if not pd.api.types.is_numeric_dtype(var[column].dtype)]]
    return names.copy() if before is None else pd.concat([before, names])


def _totals(block: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()


def _normalised(block: sparse.csr_matrix, scale: float) -> sparse.csr_matrix:
    totals = _totals(block)
    factors = np.divide(scale, totals, out=np.zeros_like(totals), where=totals > 0).astype(np.float32)
    return _with_values(block, block.data * np.repeat(factors, np.diff(block.indptr)))


def _logged(block: sparse.csr_matrix) -> sparse.csr_matrix:
    return _with_values(block, np.log1p(block.data, dtype=np.float32))


def _with_values(block: sparse.csr_matrix, values: np.ndarray) -> sparse.csr_matrix:
    """Return a matrix with other values that shares the structure, which nobody changes."""
    return sparse.csr_matrix((values.astype(np.float32, copy=False), block.indices, block.indptr), shape=block.shape)


def _inside(cells: np.ndarray, rows: slice) -> np.ndarray:
    """Which of the sorted cells are among these rows, as numbers within the rows."""
    first, last = np.searchsorted(cells, (rows.start, rows.stop))
    return np.asarray(cells[first:last] - rows.start)


def _for_mmd(obs: pd.DataFrame, ratio: float, seed: int) -> np.ndarray:
    """Sample validation cells, with the frequency of their batch and cell type as weights; bool (n_cells,)."""
    kind = obs["batch"].astype(str)
    if "celltype" in obs:
        kind = kind + "\n" + obs["celltype"].astype(str)
    valid = pd.Series(kind.to_numpy())[(obs["split"] == "valid").to_numpy()]
    if valid.empty:
        return np.zeros(len(obs), dtype=bool)
    weights = valid.map(valid.value_counts()).to_numpy(float)
    # as in `valid.sample`, which refuses uneven weights from pandas 3 on
    draw = np.random.RandomState(seed).choice
    chosen = draw(valid.index, round(ratio * len(valid)), replace=False, p=weights / weights.sum())
    return np.isin(np.arange(len(obs)), chosen)

"""New cells of a trained experiment: processed as its own were, and written together with them."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from anndata.utils import make_index_unique
from scipy import sparse

from discern.blocks import is_lazy, iter_blocks
from discern.config import load_parameters
from discern.errors import InvalidInputError
from discern.genes import match
from discern.io import FORMAT, DISCERNData
from discern.merging import BatchColumn, batch_key, sources
from discern.preprocessing import WAERecipe
from discern.progress import track
from discern.writing import write_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from discern.blocks import Matrix

_LOGGER = logging.getLogger(__name__)

_SHOWN = 10
_HIGHEST_LOGGED = 30
"""Higher than the logarithm of any count."""


class OnlineWAERecipe(WAERecipe):
    """Preprocessing of new cells as those of a trained experiment were processed.

    The cells are restricted to the reference's genes, and get its library size, means, standard deviations, principal
    components and kernel width. Cells of a batch that the reference has are added to it (`fix_batch_labels`).

    Args:
        reference_adata: the processed cells of the experiment; not modified.
        args: arguments of `WAERecipe`: the experiment's parameters, and the new cells or files. If the experiment took
            the batch from the same obs column in all its own files, it comes from this one, or is the file's name.
        fill_missing_genes: whether genes of the reference that a file lacks are zero in its cells; else they are an
            error.
        kwargs: arguments of `WAERecipe`.

    Raises:
        InvalidInputError: if genes are missing, or the cells were processed or logged already.

    Example:
        >>> from discern.datasets import lung_cell_lines
        >>> celseq2, dropseq = (ad.read_h5ad(path)[:60].copy() for path in lung_cell_lines().values())
        >>> parameters = {"filtering": {"min_genes": 10, "min_cells": 3}, "scale": {"LSN": 20000}}
        >>> celseq2.obs["batch"] = ["one", "two"] * 30
        >>> reference = WAERecipe(parameters, {"old": celseq2})().sc_raw
        >>> new = OnlineWAERecipe(reference, parameters, {"new": dropseq}, fill_missing_genes=True)()
        >>> new.sc_raw.var_names.equals(reference.var_names), new.config["batch_key"]
        (True, {'0': 'one', '1': 'two', '2': 'dropseq'})
    """

    def __init__(
        self, reference_adata: ad.AnnData, *args: Any, fill_missing_genes: bool = False, **kwargs: Any
    ) -> None:
        self._reference = reference_adata
        self._fill_missing_genes = fill_missing_genes
        super().__init__(*args, **kwargs)
        self.params["scale"] = dict(reference_adata.uns["DISCERN"].get("scale", {}))
        if "fixed_scaling" in reference_adata.uns:
            self.params["scale"]["fixed_scaling"] = dict(reference_adata.uns["fixed_scaling"])

    @classmethod
    def from_path(
        cls,
        job_dir: str | Path,
        input_files: Sequence[str | Path] | Mapping[str, str | None] | None = None,
        fill_missing_genes: bool = False,
    ) -> OnlineWAERecipe:
        """Make the recipe for new cells of an experiment.

        Args:
            job_dir: folder of the experiment, with `parameters.json` and its processed cells, the reference.
            input_files: the new cells; by default `input_ds.raw_input` of the parameters.
            fill_missing_genes: see `OnlineWAERecipe`.
        """
        (experiment,) = load_parameters(Path(job_dir) / "parameters.json").experiments.values()
        reference = DISCERNData.from_folder(job_dir, batch_size=1)
        return cls(reference, experiment, input_files=input_files, fill_missing_genes=fill_missing_genes)

    def _merged(self, inputs: Mapping[str, ad.AnnData], columns: Mapping[str, BatchColumn]) -> ad.AnnData:
        usual = {source.batch for source in sources(self.params.get("raw_input")).values()}
        if len(usual) == 1:
            (column,) = usual
            said = {key: named for key, named in columns.items() if named is not None}
            other: BatchColumn = (
                None if column in (None, "batch") else False
            )  # its `batch` is not what the experiment calls so
            columns = {key: column if column in adata.obs else other for key, adata in inputs.items()} | said
        return super()._merged({key: self._aligned(key, adata) for key, adata in inputs.items()}, columns)

    def _aligned(self, name: str, adata: ad.AnnData) -> ad.AnnData:
        """Return the cells with the reference's genes in its order."""
        _check_raw(name, adata)
        adata = _named_alike(name, adata, self._reference.var)
        genes = self._reference.var_names
        missing = genes[~genes.isin(adata.var_names)]
        if len(missing) and not self._fill_missing_genes:
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            raise InvalidInputError(
                f"{name}: lacks {len(missing)} of the {len(genes)} genes of the experiment: "
                f"{', '.join(missing[:_SHOWN])}{more}; its own have names like {', '.join(adata.var_names[:2])}. "
                "--fill-missing-genes (fill_missing_genes=True) takes them as zero"
            )
        if len(missing) == len(genes):
            raise InvalidInputError(
                f"{name}: has none of the genes of the experiment, which have names like {', '.join(genes[:2])}; its "
                f"own have names like {', '.join(adata.var_names[:2])}"
            )
        if len(missing):
            _LOGGER.warning("%s: %d of %d genes are missing and taken as zero", name, len(missing), len(genes))
            names = pd.Index([*adata.var_names, *missing])
            adata = ad.AnnData(X=_widened(adata.X, len(names)), obs=adata.obs, var=pd.DataFrame(index=names))
        return adata[:, genes]

    def filtering(self, min_genes: int, *unused_args: Any, **unused_kwargs: Any) -> None:
        """Keep the cells that have enough of the reference's genes; all genes are kept.

        Args:
            min_genes: a cell is kept if it has at least so many genes.
            unused_args: ignored.
            unused_kwargs: ignored.
        """
        super().filtering(min_genes, min_cells=0)
        self.fix_batch_labels()

    def fix_batch_labels(self) -> None:
        """Put the new batches after those of the reference; cells of a batch that is there already belong to it.

        `sc_raw.obs["batch"]` gets the categories of both, and `config["batch_key"]` their numbers.
        """
        known = list(self._reference.obs["batch"].cat.categories)
        batch = self.sc_raw.obs["batch"].cat.remove_unused_categories()
        for name in batch.cat.categories.intersection(known):
            warnings.warn(
                f"the experiment has a batch {name!r} already: the {int((batch == name).sum())} new cells of this name "
                "are taken as cells of it; if they are of another batch, rename theirs",
                stacklevel=2,
            )
        labels = list(dict.fromkeys([*known, *batch.cat.categories]))
        self.sc_raw.obs["batch"] = batch.cat.set_categories(labels)
        self.config["batch_key"] = batch_key(labels)

    def split(
        self, split_seed: int, valid_cells_ratio: float, mmd_cells_ratio: float = 1.0, test_cells_ratio: float = 0
    ) -> None:
        """Choose validation cells as `WAERecipe.split` does; numbers of cells become the shares that the reference has.

        Args:
            split_seed: of all choices.
            valid_cells_ratio: share of each batch.
            mmd_cells_ratio: share of the validation cells.
            test_cells_ratio: share of each batch that nothing is learned from.
        """
        reference = self._reference.obs["split"]
        valid, test = (
            float((reference == part).mean()) if ratio > 1 else ratio
            for part, ratio in (("valid", valid_cells_ratio), ("test", test_cells_ratio))
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="all cells are of one batch")  # there are the reference's
            super().split(split_seed, valid, mmd_cells_ratio, test)

    @property
    def _components(self) -> int:
        return np.shape(self._reference.varm["PCs"])[1]

    def projection_pca(self, pcs: int = 25) -> None:
        """Take over the reference's annotation of genes and its principal components.

        Args:
            pcs: number of components, that of the reference.

        Raises:
            InvalidInputError: if the reference has another number of components.
        """
        if pcs != self._components:
            raise InvalidInputError(
                f"pcs: expected {self._components}, the number of principal components of the reference, got {pcs}"
            )
        self.sc_raw.var = self._reference.var.copy()
        self.sc_raw.varm["PCs"] = np.asarray(self._reference.varm["PCs"])

    def kernel_mmd(self, neighbors_mmd: int = 50, no_cells_mmd: int = 2000) -> None:
        """Take over the reference's kernel width.

        Args:
            neighbors_mmd: ignored.
            no_cells_mmd: ignored.
        """
        self.config["mmd_kernel"] = dict(self._reference.uns["DISCERN"]["mmd_kernel"])

    def _record_dispersions(self) -> None:
        """Do nothing: the dispersions are the reference's."""


def _check_raw(name: str, adata: ad.AnnData) -> None:
    if "DISCERN" in adata.uns:
        raise InvalidInputError(
            f"{name}: expected raw counts, these cells were processed by DISCERN; give the raw file"
        )
    values = next((block.data for _, block in iter_blocks(adata.X)), np.empty(0))
    fractions = bool((values != np.floor(values)).any())
    if "log1p" in adata.uns or (fractions and values.max() < _HIGHEST_LOGGED):
        found = 'uns["log1p"]' if "log1p" in adata.uns else f"fractions of at most {values.max():.3g}"
        raise InvalidInputError(
            f"{name}: expected raw counts, these cells are logged ({found}); put the counts into X and take "
            'uns["log1p"] out'
        )


def _named_alike(name: str, adata: ad.AnnData, reference: pd.DataFrame) -> ad.AnnData:
    """Return the cells with the reference's names of genes where the other kind of name stands in a column of var."""
    try:
        found = match({"the experiment": reference, name: adata.var})
    except InvalidInputError:
        return adata
    for note in found.warnings:
        warnings.warn(note, stacklevel=2)
    if found.by is None and not len(found.different):
        return adata
    for note in found.remarks:
        _LOGGER.info("%s", note)
    if found.by is None:
        return adata[:, ~adata.var_names.isin(found.different)].copy()
    columns = found.columns[name]
    return ad.AnnData(X=adata.X[:, columns], obs=adata.obs, var=adata.var.iloc[columns].set_axis(found.names))


def _widened(X: Matrix, genes: int) -> Matrix:
    """Append columns of zeros."""
    if is_lazy(X):
        meta = sparse.csr_matrix((0, 0), dtype=X.dtype)
        return X.map_blocks(_widened, genes, chunks=(X.chunks[0], (genes,)), dtype=X.dtype, meta=meta)
    X = sparse.csr_matrix(X)
    return sparse.csr_matrix((X.data, X.indices, X.indptr), shape=(X.shape[0], genes))


def save_data(file: str | Path, data: ad.AnnData, old_data: ad.AnnData) -> None:
    """Write old and new cells to one file, block of cells by block of cells.

    Genes are those that both have, in the order of the old ones. var, varm and uns are those of the old cells, with the
    numbers of cells and batches of both in `uns["DISCERN"]`. obs has the columns of both, without values where one
    lacks it. Old cells keep their names; new ones with a name that is there already get a number.

    Args:
        file: the `.h5ad` to write; complete or not there.
        data: new cells, processed by `OnlineWAERecipe`; log-normalised.
        old_data: old cells, processed; log-normalised.
    """
    genes = old_data.var_names[old_data.var_names.isin(data.var_names)]
    columns = old_data.var_names.get_indexer(genes)
    header = ad.AnnData(
        obs=_joined_obs(old_data.obs, data.obs),
        var=old_data.var.iloc[columns].copy(),
        uns={
            **old_data.uns,
            "DISCERN": _joined_config(old_data.uns["DISCERN"], data.uns["DISCERN"], len(genes)),
            "DISCERN_format": dict(FORMAT),
        },
        varm={key: np.asarray(value)[columns] for key, value in old_data.varm.items()},
        obsm={
            key: np.concatenate([old_data.obsm[key], data.obsm[key]])
            for key in old_data.obsm.keys() & data.obsm.keys()
            if np.shape(old_data.obsm[key])[1:] == np.shape(data.obsm[key])[1:]
        },
    )

    def blocks() -> Iterator[dict[str, sparse.csr_matrix]]:
        for part in (old_data, data):
            order = part.var_names.get_indexer(genes)
            same = part.var_names.equals(genes)
            for _, block in iter_blocks(part.X):
                yield {"X": block if same else block[:, order]}

    write_blocks(file, header, track(blocks(), "writing old and new cells"))


def _joined_obs(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    index = pd.Index([*old.index.astype(str), *new.index.astype(str)])
    repeated = int(index.duplicated().sum())
    if repeated:
        _LOGGER.warning("%d new cells have names that are there already: a number is appended to them", repeated)
        index = make_index_unique(index)
    joined = pd.DataFrame(index=index)
    for column in dict.fromkeys([*old, *new]):
        joined[column] = _joined_column([frame.get(column, _missing(frame)) for frame in (old, new)])
    return joined


def _missing(frame: pd.DataFrame) -> pd.Series:
    return pd.Series(pd.NA, index=frame.index, dtype=object)


def _joined_column(parts: list[pd.Series]) -> Any:
    """Return the values of both parts in a type that h5ad files know: numbers, truth values, texts or categories."""
    filled = [part for part in parts if part.notna().any()] or parts
    complete = all(part.notna().all() for part in parts)
    if all(pd.api.types.is_bool_dtype(part) for part in filled):
        values = pd.concat([part.astype("boolean") for part in parts], ignore_index=True)
        return values.to_numpy(bool) if complete else values.array
    if all(pd.api.types.is_numeric_dtype(part) for part in filled):
        return np.concatenate(
            [part.to_numpy() if complete else part.to_numpy(float, na_value=np.nan) for part in parts]
        )
    values = pd.concat([part.astype(object) for part in parts], ignore_index=True)
    if complete and all(isinstance(value, str) for value in values) and not any(map(_is_category, parts)):
        return values.to_numpy()
    known = [part.cat.categories if _is_category(part) else part.dropna().unique() for part in parts]
    categories = list(dict.fromkeys(name for names in known for name in names))
    if len({type(name) for name in categories}) > 1:
        values = values.map(str, na_action="ignore")
        categories = list(dict.fromkeys(map(str, categories)))
    return pd.Categorical(values, categories=categories)


def _is_category(column: pd.Series) -> bool:
    return isinstance(column.dtype, pd.CategoricalDtype)


def _joined_config(old: Mapping[str, Any], new: Mapping[str, Any], n_genes: int) -> dict[str, Any]:
    """Return the reference's `uns["DISCERN"]` with the batches and the numbers of cells of both."""
    sums = {key: int(old[key]) + int(new[key]) for key in ("total_count", "total_train_count", "total_valid_count")}
    numbers = {key: _added(old[key], new[key]) for key in ("train_cells_no", "valid_cells_no")}
    cells = _added(
        *(
            {name: float(ratio) * int(part["total_count"]) for name, ratio in part["batch_ratios"].items()}
            for part in (old, new)
        )
    )
    ratios = {name: number / sums["total_count"] for name, number in cells.items()}
    return {
        **old,
        **sums,
        **numbers,
        "batch_ratios": ratios,
        **({"user_columns": _joined_names(old, new)} if "user_columns" in {**old, **new} else {}),
        "batch_key": dict(new["batch_key"]),
        "common_genes_count": n_genes,
    }


def _added(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    return {**old, **{name: old.get(name, 0) + number for name, number in new.items()}}


def _joined_names(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return what the user's columns are called whose names the program uses."""
    parts = [config.get("user_columns", {}) for config in (old, new)]
    return {part: {**parts[1].get(part, {}), **parts[0].get(part, {})} for part in {**parts[0], **parts[1]}}

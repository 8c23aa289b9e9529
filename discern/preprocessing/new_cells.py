"""Process new cells with the gene statistics of an experiment that is there."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from discern.config.reading import load_parameters
from discern.data.annotation import batch_names
from discern.data.chunks import is_lazy, iter_blocks
from discern.data.processed import LEFT_OUT, DISCERNData
from discern.errors import InvalidInputError, nearest
from discern.folder.layout import ExperimentFolder
from discern.inputs.gene_matching import match
from discern.inputs.merging import BatchColumn, Source, batch_key, listed, sources
from discern.preprocessing.gene_statistics import GeneStatistics
from discern.preprocessing.recipe import WAERecipe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from discern.config.schema import Experiment
    from discern.data.chunks import Matrix

_LOGGER = logging.getLogger(__name__)


_SHOWN = 10
_MOST_MISSING = 0.2
_NEW = "new"
_OF_EXPERIMENT = ("mmd_kernel", "common_genes_count")
_ANY_SOURCE = Source()
_HIGHEST_LOGGED = 30
"""Higher than the logarithm of any count."""


class OnlineWAERecipe(WAERecipe):
    """Preprocessing of new cells as those of a trained experiment were processed.

    The cells are restricted to the reference's genes, and get its library size, means, standard deviations, principal
    components and kernel width. Cells of a batch that the reference has are added to it (`fix_batch_labels`).

    Args:
        reference_adata: The processed cells of the experiment; not modified.
        args: Arguments of `WAERecipe`: the experiment's parameters, and the new cells or files. If the experiment took
            the batch from the same obs column in all its own files, it comes from this one, or is the file's name.
        fill_missing_genes: Whether genes of the reference that a file lacks are zero in its cells; else they are an
            error.
        kwargs: Arguments of `WAERecipe`.

    Raises:
        InvalidInputError: If genes are missing, or the cells were processed or logged already.

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
        self._reference, self._taken = reference_adata, GeneStatistics.of(reference_adata)
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
            job_dir: Folder of the experiment, with `parameters.json` and its processed cells, the reference.
            input_files: The new cells; by default `input_ds.raw_input` of the parameters.
            fill_missing_genes: See `OnlineWAERecipe`.
        """
        (experiment,) = load_parameters(ExperimentFolder(Path(job_dir)).parameters).experiments.values()
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

    def filtering(self, min_genes: int, *unused_args: object, **unused_kwargs: object) -> None:
        """Keep the cells that have enough of the reference's genes; all genes are kept.

        Args:
            min_genes: A cell is kept if it has at least so many genes.
            unused_args: Ignored.
            unused_kwargs: Ignored.
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
            split_seed: Of all choices.
            valid_cells_ratio: Share of each batch.
            mmd_cells_ratio: Share of the validation cells.
            test_cells_ratio: Share of each batch that nothing is learned from.
        """
        reference = self._reference.obs["split"]
        valid, test = (
            float((reference == part).mean()) if ratio > 1 else ratio
            for part, ratio in (("valid", valid_cells_ratio), ("test", test_cells_ratio))
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="all cells are of one batch")  # there are the reference's
            super().split(split_seed, valid, mmd_cells_ratio, test)


class ProjectionRecipe(OnlineWAERecipe):
    """Preprocessing of new cells that are to be projected only: nothing is learnt from them.

    Cells are filtered as they would be if they were in the experiment from the start, by all genes that its cells were
    filtered by, and scaled to its library size; they get its genes and what is known of these.

    Args:
        genes: var of the experiment's processed cells.
        uns: uns of these.
        params: The experiment's parameters.
        name: What messages call the new cells; the name of their file.
        cells: The new cells; raw counts, not modified.
        source: Where their batch stands, see `discern.inputs.merging.Source`.
        batch: The batch of all of them, one that the experiment has, whatever they say themselves; None to ask them.
        as_batch: The batch that cells of batches that the experiment does not have are encoded as; None for an error.

    Attributes:
        own_batch: What the cells say themselves is their batch, after `__call__`; in `sc_raw` it is what they are
            encoded as.

    Raises:
        InvalidInputError: If a batch is unknown, more than a fifth of the genes are missing, or the counts are not raw.

    Example:
        >>> from discern.datasets import lung_cell_lines
        >>> celseq2, dropseq = (ad.read_h5ad(path)[:60].copy() for path in lung_cell_lines().values())
        >>> parameters = {"filtering": {"min_genes": 10, "min_cells": 3}, "scale": {"LSN": 20000}}
        >>> known = WAERecipe(parameters, {"old": celseq2})().sc_raw
        >>> new = ProjectionRecipe(known.var, known.uns, parameters, "later", celseq2[:20], Source("batch"))()
        >>> bool(abs(new.sc_raw.X - known.X[:20]).max() < 1e-6)
        True
    """

    def __init__(
        self,
        genes: pd.DataFrame,
        uns: Mapping[str, Any],
        params: Mapping[str, Any] | Experiment,
        name: str,
        cells: ad.AnnData,
        source: Source = _ANY_SOURCE,
        batch: str | None = None,
        as_batch: str | None = None,
    ) -> None:
        known = batch_names(uns)
        for option, chosen in (("batch", batch), ("as_batch", as_batch)):
            if chosen is not None and chosen not in known:
                raise InvalidInputError(
                    f"{option} {chosen!r}: the model knows no such batch{nearest(chosen, known)}; it knows "
                    f"{', '.join(map(repr, known))}"
                )
        self._known, self._batch, self._as_batch = known, batch, as_batch
        without_cells = ad.AnnData(
            obs=pd.DataFrame({"batch": pd.Categorical([], categories=known)}, index=pd.Index([], dtype=object)),
            var=genes.copy(),
            uns=dict(uns),
        )
        super().__init__(without_cells, params, {name: cells}, {name: source if batch is None else Source(False)})
        self.own_batch = self.sc_raw.obs["batch"]
        self._check_batches(name)

    def __call__(self) -> ProjectionRecipe:
        """Do what `OnlineWAERecipe` does, but for all that only training needs.

        Returns:
            The recipe itself, with the processed cells in `sc_raw`.
        """
        self.filtering(**self.params["filtering"])
        self.celltypes()
        if "LSN" in self.params.get("scale", {}):
            self.scaling(self.params["scale"]["LSN"])
        obs = self.sc_raw.obs
        obs["split"], obs["for_mmd"] = pd.Categorical([_NEW] * len(obs)), False
        self.sc_raw.var = self._reference.var.copy()
        self._log1p()
        self.mean_var_scaling()
        config = self._reference.uns["DISCERN"]
        renamed = {part: dict(names) for part, names in config.get("user_columns", {}).items() if part == "var"}
        renamed |= {part: names for part, names in self.config.get("user_columns", {}).items() if part == "obs"}
        self.sc_raw.uns["DISCERN"].update({key: config[key] for key in _OF_EXPERIMENT if key in config})
        self.config.pop("user_columns", None)
        if renamed:
            self.config["user_columns"] = renamed
        return self

    def _merged(self, inputs: Mapping[str, ad.AnnData], columns: Mapping[str, BatchColumn]) -> ad.AnnData:
        merged = super()._merged(inputs, columns)
        if self._batch is not None:
            merged.obs["batch"] = pd.Categorical([self._batch] * merged.n_obs)
        return merged

    def _aligned(self, name: str, adata: ad.AnnData) -> ad.AnnData:
        """Return the cells with the experiment's genes in its order, and after them those that it left out."""
        _check_raw(name, adata)
        genes, left_out = self._reference.var_names, self._reference.uns.get(LEFT_OUT, pd.DataFrame())
        adata = _named_alike(name, adata, pd.concat([self._reference.var, left_out]))
        missing = genes[~genes.isin(adata.var_names)]
        if len(missing) > _MOST_MISSING * len(genes):
            raise InvalidInputError(
                f"{name}: lacks {len(missing):,} of the {len(genes):,} genes of the model, more than "
                f"{_MOST_MISSING:.0%}: expected names or ids like {', '.join(genes[:2])}, its own are like "
                f"{', '.join(map(str, adata.var_names[:2]))}; give it all genes that were counted, under the names of "
                "the model or with them in a column of var"
            )
        if len(missing):
            _LOGGER.warning(
                "%s: %s of the %s genes of the model are missing and taken as zero: %s",
                *(name, f"{len(missing):,}", f"{len(genes):,}", listed(list(missing))),
            )
        others = left_out.index[left_out.index.isin(adata.var_names)]
        wanted = pd.Index([*genes, *others])
        if not len(missing):
            return adata if adata.var_names.equals(wanted) else adata[:, wanted]
        names = pd.Index([*adata.var_names, *missing])
        return ad.AnnData(_widened(adata.X, len(names)), obs=adata.obs, var=pd.DataFrame(index=names))[:, wanted]

    def _check_batches(self, name: str) -> None:
        """Raise InvalidInputError if cells are of a batch that the model does not know, and nothing says what to do."""
        sizes = self.own_batch.value_counts()
        unknown = [str(batch) for batch in sizes.index if str(batch) not in self._known]
        if not unknown:
            return
        cells = f"{int(sizes[unknown].sum()):,} cells of {listed(unknown)}"
        if self._as_batch is None:
            raise InvalidInputError(
                f"{name}: {cells}: the model knows only the batches {listed(self._known)}. If they are cells of one of "
                "these, name it (--batch B, or --batch-column for the obs column that holds it); train on new ones "
                f"with `discern onlinetraining`, or have them encoded as though they were of a known one: --as-batch "
                f"{self._known[0]}"
            )
        _LOGGER.warning("%s: %s are encoded as though they were of %r", name, cells, self._as_batch)

    def filtering(self, min_genes: int, *unused_args: Any, **unused_kwargs: Any) -> None:
        """Keep the cells that have enough genes, as many as the experiment's own; its genes are kept.

        Args:
            min_genes: A cell is kept if it has at least so many genes.
            unused_args: Ignored.
            unused_kwargs: Ignored.
        """
        WAERecipe.filtering(self, min_genes, min_cells=0)
        cells, n_genes = self.sc_raw, self._reference.n_vars
        X = cells.X if cells.n_vars == n_genes else cells.X[:, :n_genes]
        var = pd.DataFrame(index=self._reference.var_names)
        self.sc_raw = self._of_recipe(ad.AnnData(X=X, obs=cells.obs, var=var, uns=cells.uns))
        self.fix_batch_labels()

    def fix_batch_labels(self) -> None:
        """Set the batch of each cell to that which it is encoded as, one of the model's."""
        obs = self.sc_raw.obs
        self.own_batch = obs["batch"]
        encoded = obs["batch"].astype(str)
        if self._as_batch is not None:
            encoded = encoded.where(encoded.isin(self._known), self._as_batch)
        obs["batch"] = pd.Categorical(encoded, categories=self._known)
        self.config["batch_key"] = batch_key(self._known)


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

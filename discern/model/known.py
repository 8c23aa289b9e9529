"""What is known of an experiment's cells without the cells: enough to project new ones and say how far to believe it.

For each batch that cells may be decoded as: directions of latent codes of its training cells, to which distances are
measured, the trust in each gene, the intervals of estimates, and latent codes of other batches' cells with their moves
onto its own. They are kept in `job/seen_cells.hdf`, so that the cells are encoded once, and go into a model that is
given away.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata.io import read_elem

from discern.data.annotation import batch_names
from discern.data.containers import open_hdf5
from discern.data.structure import check_finite, check_format, number, uns_as_written, whole_number
from discern.errors import InvalidInputError
from discern.folder.layout import ExperimentFolder
from discern.metrics.alignment import Alignment, lacking
from discern.metrics.latent_space import Yardstick, note_distance, warn_of_strangers
from discern.metrics.trust import Calibration, check_enough_held_out
from discern.model.projection import EncodedCells, OwnCells, Trust, interval_batch, note_trust
from discern.runtime.atomic import replacing
from discern.runtime.hdf5 import OutputFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    import anndata
    import h5py
    import numpy.typing as npt
    import pandas as pd

    from discern.data.processed import DISCERNData
    from discern.model.trained import TrainedNetwork

_LOGGER = logging.getLogger(__name__)


_FORMAT_VERSION = 2
_NO_BATCH = ""
"""Of the entry that is of all cells; no batch is called so."""


@dataclass(frozen=True)
class SeenCells:
    """What is kept of the cells of a batch, or of all cells.

    Attributes:
        trust: How far to believe each gene, and by which cells.
        yardstick: What distances from them are measured with; None if there are too few, or they are all cells.
        calibration: The intervals of estimates; None if too few cells were held out.
        alignments: Batch -> which of its cells have counterparts in this one, and what moves their codes onto those.
    """

    trust: Trust
    yardstick: Yardstick | None = None
    calibration: Calibration | None = None
    alignments: Mapping[str, Alignment] = field(default_factory=dict)

    @classmethod
    def of(cls, own: OwnCells, reference: str | None) -> SeenCells:
        """Find it out from the cells of an experiment.

        Args:
            own: All its cells.
            reference: The batch; None for all cells.
        """
        if reference is None:
            return cls(own.trust(None))
        calibration = None
        try:
            check_enough_held_out(own.cells.obs, reference)
        except InvalidInputError:
            pass
        else:
            calibration = own.calibration("batch", reference)
        yardstick = Yardstick.of(own.cells.latent, own.cells.obs, reference)
        return cls(own.trust(reference), yardstick, calibration, own.alignments(reference))


@dataclass(frozen=True)
class Known:
    """What an experiment knows of its cells.

    Attributes:
        genes: var of its processed cells.
        uns: uns of these.
        seen: What is kept of the cells of each batch, and of all under None; those that were asked for.
    """

    genes: pd.DataFrame
    uns: Mapping[str, Any]
    seen: Mapping[str | None, SeenCells] = field(default_factory=dict)

    @property
    def batches(self) -> list[str]:
        """Names of the batches, in the order of the model."""
        return batch_names(self.uns)


@dataclass(frozen=True)
class NewCells:
    """Judges new cells by what is known of an experiment's.

    Attributes:
        known: That.
        cells: The new cells, encoded.
        own_batch: What the cells say is their batch; they may be encoded as another one.
    """

    known: Known
    cells: EncodedCells
    own_batch: pd.Series

    def labels(self, column: str | None, value: str | None) -> npt.NDArray[np.float32]:
        """Return the labels to decode with: those of a batch, of the average cell of the experiment, or their own."""
        if column is None:
            return self.cells.batch_onehot
        if column != "batch":
            raise InvalidInputError(
                f"metadata {column}:{value or ''}: new cells are decoded as batches: expected batch:NAME, or batch: "
                "for the average cell of the experiment"
            )
        if value:
            label = np.array([float(name == value) for name in self.known.batches], dtype=np.float32)
        else:
            ratios = self.known.uns["DISCERN"]["batch_ratios"]
            label = np.array([ratios[name] for name in self.known.batches], dtype=np.float32)
        return np.repeat(label[np.newaxis], len(self.cells.latent), 0)

    def alignments(self, reference: str) -> Mapping[str, Alignment]:
        """Return those of the experiment's cells."""
        return self.known.seen[reference].alignments

    def calibration(self, column: str | None, value: str | None) -> Calibration:
        """Return that of the batch."""
        batch = interval_batch(column, value)
        found = self.known.seen[batch].calibration
        if found is None:
            raise InvalidInputError(
                f"intervals are learnt from cells of the reference that training did not see, and of {batch!r} there "
                "were fewer than 10: hold some out with input_ds.split.test_cells, then process and train"
            )
        return found

    def annotate(self, result: anndata.AnnData, reference: str | None) -> None:
        """Add distance and trust; and which batch the cells say that they are of."""
        encoded_as = result.obs["batch"].astype(str)
        result.obs["batch"] = self.own_batch.cat.remove_unused_categories()
        if (own := self.own_batch.astype(str)).ne(encoded_as).any():
            result.obs["discern_encoded_as"] = encoded_as.astype("category")
        seen = self.known.seen[reference]
        if reference is not None and seen.yardstick is not None:
            distance = seen.yardstick.distance(self.cells.latent, own.to_numpy())
            distance *= lacking(self.cells.latent, self.cells.batch, seen.alignments)
            note_distance(result, distance, seen.yardstick.line, seen.yardstick.split)
            warn_of_strangers(result.obs, reference)
        note_trust(result, seen.trust)


def of_experiment(
    folder: Path, trained: TrainedNetwork, references: Iterable[str | None], load: Callable[[], DISCERNData]
) -> Known:
    """Return what an experiment knows, without its cells if it has been asked before; else it is kept in `job`.

    Args:
        folder: EXPERIMENTS_DIR/NAME, processed and trained.
        trained: Its network.
        references: The batches that cells will be decoded as, None for their own.
        load: Reads the cells of the experiment.

    Raises:
        InvalidInputError: If a file cannot be read.
    """
    place = ExperimentFolder(folder)
    known = genes_of_experiment(place)
    model = digest(trained)
    seen = _read_kept(place.seen_cells, model, len(known.genes))
    wanted = [name for name in dict.fromkeys(references) if name not in seen]
    if wanted:
        _LOGGER.info("encoding the experiment's own cells once, for the distances and the trust of what is projected")
        data = load()
        own = OwnCells.of(trained, data)
        seen |= {name: SeenCells.of(own, name) for name in wanted}
        with replacing(place.seen_cells) as partial, OutputFile(partial) as file:
            file.attrs["seen_cells_version"], file.attrs["model"] = _FORMAT_VERSION, model
            write_seen(file, seen)
    return replace(known, seen=seen)


def genes_of_experiment(place: ExperimentFolder) -> Known:
    """Read var and uns of processed cells, not the cells."""
    advice = "run `discern process` again"
    with open_hdf5(place.cells, "cannot be read as processed cells", advice, ("var", "uns")) as file:
        genes, uns = read_elem(file["var"]), uns_as_written(read_elem(file["uns"]))
        check_format(uns)
        return Known(genes, uns)


def digest(trained: TrainedNetwork) -> str:
    """Return a digest of a network's weights."""
    found = hashlib.sha256()
    for variable in sorted(trained.network.weights, key=lambda variable: variable.path):
        found.update(variable.path.encode())
        found.update(np.ascontiguousarray(variable.numpy()).tobytes())
    return found.hexdigest()


def _read_kept(path: Path, model: str, n_genes: int) -> dict[str | None, SeenCells]:
    """Return what was kept for this model; nothing if it is of another one, or damaged."""
    if not path.is_file():
        return {}
    try:
        with open_hdf5(path, "cannot be read") as file:
            if file.attrs.get("seen_cells_version") != _FORMAT_VERSION or file.attrs.get("model") != model:
                return {}
            return read_seen(file, n_genes)
    except InvalidInputError as error:
        _LOGGER.warning("%s; it is made anew", error)
        return {}


def write_seen(file: h5py.Group, seen: Mapping[str | None, SeenCells]) -> None:
    """Write into the group `seen` of an HDF5 file what is kept of cells; no name of a cell is among it."""
    for number_, (name, kept) in enumerate(seen.items()):
        group = file.create_group(f"seen/{number_}")
        group.attrs["batch"] = _NO_BATCH if name is None else name
        group["trust"] = kept.trust[0]
        group.attrs["trust_cells"], group.attrs["trust_split"] = kept.trust[1]["cells"], kept.trust[1].get("split", "")
        if kept.yardstick is not None:
            group["directions"] = kept.yardstick.directions
            group.attrs["unit"], group.attrs["line"] = kept.yardstick.unit, kept.yardstick.line
            group.attrs["split"] = kept.yardstick.split
        if kept.calibration is not None:
            for part in ("edges", "low", "high"):
                group[f"calibration/{part}"] = getattr(kept.calibration, part)
            group["calibration"].attrs["cells"] = kept.calibration.cells
        for other, (batch, alignment) in enumerate(kept.alignments.items()):
            part = group.create_group(f"alignments/{other}")
            for kept_part in ("codes", "shares", "moves"):
                part[kept_part] = getattr(alignment, kept_part)
            part.attrs["batch"], part.attrs["usual"] = batch, alignment.usual


def read_seen(file: h5py.Group, n_genes: int) -> dict[str | None, SeenCells]:
    """Read what `write_seen` wrote.

    Raises:
        ValueError: If it does not hold together.
    """
    seen: dict[str | None, SeenCells] = {}
    for group in file.get("seen", {}).values():
        trust = group["trust"][()].astype(np.float32)
        if trust.shape != (n_genes,) or not (np.isnan(trust) | (np.abs(trust) <= 1.001)).all():
            raise ValueError(f"{group.name}/trust: expected correlations of {n_genes} genes")
        found_with: dict[str, int | str] = {"cells": whole_number(group.attrs, "trust_cells", 0)}
        if group.attrs["trust_split"]:
            found_with["split"] = str(group.attrs["trust_split"])
        yardstick = _read_yardstick(group) if "directions" in group else None
        calibration = _read_calibration(group["calibration"]) if "calibration" in group else None
        alignments = {str(part.attrs["batch"]): _read_alignment(part) for part in group.get("alignments", {}).values()}
        seen[str(group.attrs["batch"]) or None] = SeenCells((trust, found_with), yardstick, calibration, alignments)
    return seen


def _read_yardstick(group: h5py.Group) -> Yardstick:
    directions = np.asarray(group["directions"][()], dtype=np.float32)
    check_finite(directions, f"{group.name}/directions")
    if directions.ndim != 2 or len(directions) < 2:
        raise ValueError(f"{group.name}/directions: expected those of two cells or more, got {directions.shape}")
    unit, line = number(group.attrs, "unit", 1e-12), number(group.attrs, "line", 0)
    return Yardstick(directions, unit, line, str(group.attrs["split"]))


def _read_alignment(group: h5py.Group) -> Alignment:
    parts = {name: np.asarray(group[name][()], dtype=np.float32) for name in ("codes", "shares", "moves")}
    for name, values in parts.items():
        check_finite(values, f"{group.name}/{name}")
    shape = parts["codes"].shape
    if len(shape) != 2 or not shape[0] or parts["moves"].shape != shape or parts["shares"].shape != shape[:1]:
        raise ValueError(f"{group.name}: expected codes of cells, and a share and a move of each")
    return Alignment(**parts, usual=number(group.attrs, "usual", 0, 1))


def _read_calibration(group: h5py.Group) -> Calibration:
    edges, low, high = (np.asarray(group[part][()], dtype=np.float64) for part in ("edges", "low", "high"))
    check_finite(edges, f"{group.name}/edges")
    if low.shape != (len(edges) + 1,) or high.shape != low.shape or np.isnan([low, high]).any():
        raise ValueError(f"{group.name}: expected the ends of {len(edges) + 1} intervals")
    return Calibration(edges, low, high, whole_number(group.attrs, "cells", 0))

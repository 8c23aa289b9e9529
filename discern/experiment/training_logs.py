"""The losses of a training: those that `history` keeps, or of older ones, the logs for TensorBoard."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from discern.errors import InvalidInputError, MissingFileError
from discern.folder.locks import recover
from discern.model import history
from discern.runtime.foreign import check_file, reading

if TYPE_CHECKING:
    from collections.abc import Iterator


LOSSES = {
    "loss": "loss",
    "decoder_counts_loss": "expression (counts)",
    "decoder_dropouts_loss": "detection (dropouts)",
    "mmdpp_loss": "latent code (MMD)",
    "sigma_regularization_loss": "spread of the codes (sigma)",
}
"""The loss and its parts, in words."""

_RUNS = {"train": "", "validation": "val_"}
_PREFIX = "epoch_"
_LARGEST = 2**26


def read_history(folder: str | Path) -> dict[str, tuple[list[int], list[float]]]:
    """Read the losses of each epoch of a training, also of one that was interrupted and went on.

    Args:
        folder: EXPERIMENTS_DIR/NAME, trained; its `job/history.json` holds its losses; where it is missing, the logs in
            `job/train` and `job/validation` are read.

    Returns:
        Name (as in the `history` of Keras: "loss", "val_loss", ...) -> the epochs, from 1, and the values. An epoch
        that was done twice has the later value.

    Raises:
        MissingFileError: If there are no logs.
        InvalidInputError: If a log is damaged before its end.
    """
    folder = Path(folder)
    recover(folder)
    if kept := history.columns(folder / "job"):
        return kept
    found: dict[str, dict[int, float]] = {}
    for run, prefix in _RUNS.items():
        logs = sorted((folder / "job" / run).glob("events.out.tfevents.*"), key=lambda path: path.name)
        for path in logs:
            for name, step, value in _scalars(path):
                found.setdefault(prefix + name, {})[step + 1] = value
    if not found:
        raise MissingFileError(f"{folder / 'job' / 'train'}: no logs of a training; run `discern train` first")
    return {name: (sorted(values), [values[epoch] for epoch in sorted(values)]) for name, values in found.items()}


def _scalars(path: Path) -> Iterator[tuple[str, int, float]]:
    """Yield name, epoch from 0 and value of what Keras logged after an epoch."""
    from tensorboard.compat.proto.event_pb2 import Event

    check_file(path)
    with reading(path, "cannot be read", "it is only needed for the learning curves: move it away"):
        for record in _records(path):
            event = Event.FromString(record)
            for value in event.summary.value:
                if value.tag.startswith(_PREFIX) and value.HasField("tensor"):
                    number = value.tensor.float_val or np.frombuffer(value.tensor.tensor_content, "<f4")
                    if len(number) == 1:
                        yield value.tag.removeprefix(_PREFIX), int(event.step), float(number[0])


def _records(path: Path) -> Iterator[bytes]:
    """Yield the records of a file; a last one that is incomplete, of a training that was killed, is left out."""
    import google_crc32c

    with path.open("rb") as file:
        while len(head := file.read(12)) == 12:
            (length,) = struct.unpack("<Q", head[:8])
            if length > _LARGEST:
                raise InvalidInputError(f"{path}: a record claims to have {length:,} bytes")
            record, check = file.read(length), file.read(4)
            if len(check) < 4:
                return
            crc = google_crc32c.value(record)
            masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
            if struct.unpack("<I", check)[0] != masked:
                raise InvalidInputError(f"{path}: a record is damaged")
            yield record

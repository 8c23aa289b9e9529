"""The losses of a training, kept beside the model: `job/history.json`."""

from __future__ import annotations

import json
import logging
import math
from typing import TYPE_CHECKING

from discern.runtime.atomic import replacing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_LOGGER = logging.getLogger(__name__)


FILE = "history.json"
_MOST_BYTES = 50_000_000


def write(job: Path, history: Mapping[str, Sequence[float]], first_epoch: int = 1) -> None:
    """Write the losses of the epochs since `first_epoch` behind those of the epochs before that are there already.

    Args:
        job: The folder of the model, an experiment's `job`.
        history: Name of a loss -> its value after each epoch.
        first_epoch: The epoch of the first value, counted from 1; later ones that are in the file are replaced.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(pathlib.Path(folder), {"loss": [3.0, 2.0]})
        ...     write(pathlib.Path(folder), {"loss": [1.0]}, first_epoch=2)
        ...     read(pathlib.Path(folder))
        {'loss': [3.0, 1.0]}
    """
    epochs, before = _stored(job) if first_epoch > 1 else ([], {})
    kept = [place for place, epoch in enumerate(epochs) if epoch < first_epoch]
    number = max(map(len, history.values()), default=0)
    columns: dict[str, list[float | None]] = {}
    for name in dict.fromkeys([*before, *history]):
        old = before.get(name, [None] * len(epochs))
        new = [float(value) if math.isfinite(value) else None for value in history.get(name, ())]
        columns[name] = [*(old[place] for place in kept), *new, *[None] * (number - len(new))]
    content = {"epoch": [*(epochs[place] for place in kept), *range(first_epoch, first_epoch + number)], **columns}
    with replacing(job / FILE) as partial:
        partial.write_text(json.dumps(content))


def read(job: Path) -> dict[str, list[float]]:
    """Return the losses after each epoch, by name; nothing if there is no file, or, with a warning, none that is one.

    Args:
        job: The folder of the model, an experiment's `job`.
    """
    _, columns = _stored(job)
    return {name: [math.nan if value is None else value for value in values] for name, values in columns.items()}


def columns(job: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Return the epochs, from 1, and the values of each loss; epochs without a value are left out.

    Args:
        job: The folder of the model, an experiment's `job`.
    """
    epochs, found = _stored(job)
    known = {
        name: [pair for pair in zip(epochs, values, strict=True) if pair[1] is not None]
        for name, values in found.items()
    }
    return {
        name: ([e for e, _ in pairs], [float(v) for _, v in pairs if v is not None]) for name, pairs in known.items()
    }


def _stored(job: Path) -> tuple[list[int], dict[str, list[float | None]]]:
    path = job / FILE
    if not path.is_file() or path.is_symlink():
        return [], {}
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is too large")
        content = json.loads(path.read_text(encoding="utf-8"))
        epochs = content.pop("epoch")
        good = all(isinstance(epoch, int) and not isinstance(epoch, bool) for epoch in epochs) and all(
            len(values) == len(epochs) and all(value is None or isinstance(value, int | float) for value in values)
            for values in content.values()
        )
        if not good:
            raise ValueError("not a column of numbers for each loss")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        _LOGGER.warning("%s: not read as the losses of a training: %s", path, error)
        return [], {}
    return epochs, content

"""How many cells a training step has, and how many epochs a training. Loads no TensorFlow."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from discern.config.schema import Training


def cells_of_step(obs: pd.DataFrame, batch_size: int) -> int:
    """Return how many cells a training step has: never more than there are validation cells.

    Without any validation cells, which make small data sets smaller, never more than a tenth of the training cells.
    """
    if "split" not in obs:
        return batch_size
    training, validation = (int((obs["split"] == name).sum()) for name in ("train", "valid"))
    if validation:
        return min(batch_size, validation)
    return min(batch_size, max(2, training // 10)) if training else batch_size


def number_of_epochs(training: Training, obs: pd.DataFrame) -> int:
    """Return after how many epochs a training ends: `max_steps`, or fewer if `max_updates` says so.

    Args:
        training: `training` of an EXPERIMENT.
        obs: Of the cells, with `split`.

    Example:
        >>> import pandas as pd
        >>> obs = pd.DataFrame({"split": ["train"] * 1000})
        >>> from discern.config.schema import Training
        >>> number_of_epochs(Training(batch_size=50, max_steps=75, max_updates=110), obs)
        6
        >>> number_of_epochs(Training(batch_size=50, max_steps=75), obs)
        75
    """
    if training.max_updates is None:
        return training.max_steps
    steps = max(1, int((obs["split"] == "train").sum()) // cells_of_step(obs, training.batch_size))
    return min(training.max_steps, -(-training.max_updates // steps))

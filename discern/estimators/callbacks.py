"""Callbacks, under the names of the published documentation."""

from discern.model.callbacks import (
    Checkpoint,
    DelayedEarlyStopping,
    Logs,
    TensorBoard,
    TrainingProgress,
    create_callbacks,
)
from discern.model.visualisation import VisualisationCallback

__all__ = [
    "Checkpoint",
    "DelayedEarlyStopping",
    "Logs",
    "TensorBoard",
    "TrainingProgress",
    "VisualisationCallback",
    "create_callbacks",
]

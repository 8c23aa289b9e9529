"""The model, under the name of the published documentation."""

from discern.model.estimator import DISCERN
from discern.model.training import Metrics

__all__ = ["DISCERN", "Metrics"]

"""The model, under the name of the published documentation."""

from discern.model.estimator import DISCERN, Metrics

__all__ = ["DISCERN", "Metrics"]

"""Two-sample statistics, under the names of the published documentation."""

from discern.metrics.two_sample import SCALES, auc, mmd_loss

__all__ = ["SCALES", "auc", "mmd_loss"]

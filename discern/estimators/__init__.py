"""Networks, losses, optimisers and the DISCERN estimator."""

from discern.estimators.run_exp import DISCERNRunner

__all__ = ["DISCERNRunner"]

"""Optimisers, under the names of the published documentation; parameter files name them too."""

from discern.networks.optimizers import Averaging, Lookahead, RectifiedAdam, from_parameters, getmembers

__all__ = ["Averaging", "Lookahead", "RectifiedAdam", "from_parameters", "getmembers"]

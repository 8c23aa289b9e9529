"""Losses, under the names of the published documentation; parameter files name them too."""

from discern.networks.losses import DummyLoss, HuberLoss, Lnorm, MaskedCrossEntropy, getmembers, reconstruction_loss

__all__ = ["DummyLoss", "HuberLoss", "Lnorm", "MaskedCrossEntropy", "getmembers", "reconstruction_loss"]

"""Layers and penalties, under the names of the published documentation."""

from discern.networks.layers import (
    Dropout,
    GaussianReparametrization,
    GeneDense,
    LibrarySizeOutput,
    condlayernorm,
    getmembers,
    label_offset,
    regularizer,
)
from discern.networks.penalties import MMDPP, BatchMMD, SigmaRegularization, batch_mmd_penalty, mmdpp_penalty

__all__ = [
    "MMDPP",
    "BatchMMD",
    "Dropout",
    "GaussianReparametrization",
    "GeneDense",
    "LibrarySizeOutput",
    "SigmaRegularization",
    "batch_mmd_penalty",
    "condlayernorm",
    "getmembers",
    "label_offset",
    "mmdpp_penalty",
    "regularizer",
]

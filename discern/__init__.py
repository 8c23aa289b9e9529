"""DISCERN: reconstruct single-cell gene expression with a conditional Wasserstein auto-encoder.

Hausmann et al., "DISCERN: deep single-cell expression reconstruction for improved cell clustering and cell subtype
and state detection", Genome Biology 24:212 (2023).

Importing this package loads neither TensorFlow nor scanpy; they come with the first class that is used.

Example:
    >>> import discern
    >>> discern.WAERecipe.__name__
    'WAERecipe'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from discern.data.processed import DISCERNData
    from discern.model.estimator import DISCERN
    from discern.preprocessing.recipe import WAERecipe
    from discern.reconstructor import Reconstructor, reconstruct

__version__ = "2.0.0"

__all__ = ["DISCERN", "DISCERNData", "Reconstructor", "WAERecipe", "__version__", "reconstruct"]

_LAZY = {
    "DISCERN": "discern.estimators.batch_integration",
    "DISCERNData": "discern.io",
    "Reconstructor": "discern.reconstructor",
    "WAERecipe": "discern.preprocessing",
    "reconstruct": "discern.reconstructor",
}


_MODULES = ("estimators", "functions", "io", "mmd", "online_learning", "preprocessing")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"discern.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])

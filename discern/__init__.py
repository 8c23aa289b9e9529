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

import contextlib
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from discern.data.processed import DISCERNData
    from discern.evaluation.differential import compare
    from discern.model.estimator import DISCERN
    from discern.preprocessing.recipe import WAERecipe
    from discern.reconstructor import Reconstructor, reconstruct

# TensorFlow reads this when it is imported: without it, it tells every script about the instructions of the processor.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

__version__ = "2.0.0"

__all__ = ["DISCERN", "DISCERNData", "Reconstructor", "WAERecipe", "__version__", "compare", "reconstruct"]

_LAZY = {
    "DISCERN": "discern.estimators.batch_integration",
    "DISCERNData": "discern.io",
    "Reconstructor": "discern.reconstructor",
    "WAERecipe": "discern.preprocessing",
    "compare": "discern.evaluation.differential",
    "reconstruct": "discern.reconstructor",
}


_MODULES = ("estimators", "functions", "io", "mmd", "online_learning", "pl", "preprocessing")


def __getattr__(name: str) -> Any:
    module = _LAZY.get(name) or (f"discern.{name}" if name in _MODULES else None)
    if module is not None:
        from discern.runtime.logs import without_native_messages

        with contextlib.nullcontext() if "tensorflow" in sys.modules else without_native_messages():
            loaded = importlib.import_module(module)
        return getattr(loaded, name) if name in _LAZY else loaded
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])

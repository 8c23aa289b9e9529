"""Networks, losses, optimisers and the estimator, under the names of the published documentation."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from discern.experiment.runner import DISCERNRunner

__all__ = ["DISCERNRunner"]

_MODULES = (
    "batch_integration",
    "callbacks",
    "customlayers",
    "losses",
    "optimizers",
    "run_exp",
    "utilities_wae",
)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.run_exp"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])

"""Networks, losses, optimisers and the estimator, under the names of the published documentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from discern.experiment.runner import DISCERNRunner

__all__ = ["DISCERNRunner"]


def __getattr__(name: str) -> type[DISCERNRunner]:
    if name != "DISCERNRunner":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from discern.experiment.runner import DISCERNRunner

    return DISCERNRunner

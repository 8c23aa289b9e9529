"""Helpers, under the names of the published documentation."""

from discern.config.allowlist import get_function_by_name, getmembers
from discern.data.annotation import prepare_train_valid
from discern.data.epochs import cells_of_step, number_of_epochs
from discern.data.scaling import (
    is_standardised,
    parse_mean_var,
    rescale_by_params,
    sample_counts,
    scale,
    scale_by_params,
)
from discern.runtime.devices import available_cpus, clamp_cpus, set_gpu_and_threads, start_tensorflow

__all__ = [
    "available_cpus",
    "cells_of_step",
    "clamp_cpus",
    "get_function_by_name",
    "getmembers",
    "is_standardised",
    "number_of_epochs",
    "parse_mean_var",
    "prepare_train_valid",
    "rescale_by_params",
    "sample_counts",
    "scale",
    "scale_by_params",
    "set_gpu_and_threads",
    "start_tensorflow",
]

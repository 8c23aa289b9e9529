"""From raw counts to cells that a network can be trained on."""

from discern.inputs.merging import merge_data_sets
from discern.inputs.readers import read_raw_input
from discern.preprocessing.recipe import WAERecipe, read_process_serialize

__all__ = ["WAERecipe", "merge_data_sets", "read_process_serialize", "read_raw_input"]

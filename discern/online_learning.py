"""Going on with new cells, under the names of the published documentation."""

from discern.experiment.online import OnlineDISCERNRunner, online_training
from discern.model.transfer import update_model
from discern.preprocessing.appending import save_data
from discern.preprocessing.new_cells import OnlineWAERecipe

__all__ = ["OnlineDISCERNRunner", "OnlineWAERecipe", "online_training", "save_data", "update_model"]

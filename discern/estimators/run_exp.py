"""Running experiments, under the names of the published documentation."""

from discern.data.annotation import CheckMetaData
from discern.experiment.folder import setup_exp
from discern.experiment.project import run_projection
from discern.experiment.runner import DISCERNRunner, run_exp_multiprocess
from discern.experiment.train import run_train

__all__ = ["CheckMetaData", "DISCERNRunner", "run_exp_multiprocess", "run_projection", "run_train", "setup_exp"]

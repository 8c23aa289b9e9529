"""Cells in files and on their way to the network, under the names of the published documentation."""

from discern.data.annotation import np_one_hot
from discern.data.chunks import estimate_csr_nbytes, iter_blocks
from discern.data.processed import DISCERNData, make_dataset_from_anndata
from discern.data.records import TFRecordsWriter, parse_tfrecords
from discern.data.writers import generate_h5ad, write_blocks

__all__ = [
    "DISCERNData",
    "TFRecordsWriter",
    "estimate_csr_nbytes",
    "generate_h5ad",
    "iter_blocks",
    "make_dataset_from_anndata",
    "np_one_hot",
    "parse_tfrecords",
    "write_blocks",
]

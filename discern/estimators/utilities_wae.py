"""Building networks, under the names of the published documentation."""

from discern.model.restoring import load_model_from_directory
from discern.networks.autoencoder import create_decoder, create_encoder, create_model

__all__ = ["create_decoder", "create_encoder", "create_model", "load_model_from_directory"]

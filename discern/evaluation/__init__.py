"""Reconstructed cells measured against real ones."""

"""Cells on disk and on their way to the network."""

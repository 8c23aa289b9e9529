"""Layers, losses, optimisers and the network itself, as Keras objects."""

"""The estimator, and what a trained network does."""

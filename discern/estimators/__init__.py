"""Networks, losses, optimisers and the DISCERN estimator."""

"""Numbers from arrays of cells; without TensorFlow."""

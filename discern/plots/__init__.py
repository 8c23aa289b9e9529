"""Pictures, with matplotlib and umap; without TensorFlow."""

"""Raw cells from files that people have."""

"""Machine, process, files and terminal; knows nothing of cells."""

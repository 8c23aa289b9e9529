"""An experiment's folder in, files out: one module a command."""

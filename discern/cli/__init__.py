"""The command line: commands that parse, check and call one function."""

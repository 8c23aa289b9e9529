"""The folder of an experiment: what is called what, and who may write there."""

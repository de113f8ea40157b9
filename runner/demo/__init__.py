"""The demo: a sample repository, and the model scripts of three roles that work on it."""

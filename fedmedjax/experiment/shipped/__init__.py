"""Configurations that come with the package: `--config=fedmedjax:NAME[:PRESET]` from anywhere."""

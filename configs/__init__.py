"""Configurations: `base.py` has every key and the table of presets; the others change values."""

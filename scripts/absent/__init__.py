"""Compiles the package for accelerators that are not there; `scripts/aot.py` is the program."""

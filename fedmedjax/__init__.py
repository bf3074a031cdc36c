"""Federated low-rank tuning of language models for clinical information extraction, on JAX."""

import os

# transformers advises to install torch when it finds none; its tokenizers need none.
os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')

__version__ = '0.1.0'

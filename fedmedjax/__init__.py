"""Federated low-rank tuning of language models for clinical information extraction, on JAX."""

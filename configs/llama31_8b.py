"""Llama-3.1-8B with the reference's hyper-parameters, for one GPU or TPU."""

from fedmedjax.experiment.shipped.llama31_8b import get_config

__all__ = ['get_config']

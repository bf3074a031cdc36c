"""Llama-3.2-1B with the reference's hyper-parameters, for one GPU or TPU."""

from fedmedjax.experiment.shipped.llama32_1b import get_config

__all__ = ['get_config']

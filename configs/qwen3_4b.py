"""Qwen3-4B with the reference's hyper-parameters, for one GPU or TPU."""

from fedmedjax.experiment.shipped.qwen3_4b import get_config

__all__ = ['get_config']

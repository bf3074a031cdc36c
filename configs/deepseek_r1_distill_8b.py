"""DeepSeek-R1-Distill-Llama-8B as llama31_8b.py, with the same architecture and settings."""

from fedmedjax.experiment.shipped.deepseek_r1_distill_8b import get_config

__all__ = ['get_config']

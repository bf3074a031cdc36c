"""Four public corpora as sites, a fifth as external cohort; SmolLM2-135M on two CPU cores."""

from fedmedjax.experiment.shipped.real_ner import get_config

__all__ = ['get_config']

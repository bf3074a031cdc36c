"""Methods against each other in seconds a run."""

from fedmedjax.experiment.shipped.ablation import get_config

__all__ = ['get_config']

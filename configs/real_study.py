"""The study on public corpora: five regimes, meant for 75 minutes of two CPU cores."""

from fedmedjax.experiment.shipped.real_study import get_config

__all__ = ['get_config']

"""First run: three synthetic cohorts, SmolLM2-135M, entity recognition, minutes on two cores."""

from fedmedjax.experiment.shipped.quickstart import get_config

__all__ = ['get_config']

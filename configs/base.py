"""Every configuration key and the table of methods, from `fedmedjax.experiment.defaults`."""

from fedmedjax.experiment.defaults import METHOD_DEFAULTS, PRESETS, apply_preset, get_config

__all__ = ['METHOD_DEFAULTS', 'PRESETS', 'apply_preset', 'get_config']

"""Federated low-rank tuning of language models for clinical information extraction, on JAX.

    import fedmedjax as fm

    config = fm.load_config('fedmedjax:quickstart', {'fed.rounds': 1})
    result = fm.run(config, 'runs/first')

Names are imported when they are first used.
"""

import importlib
import os
from typing import Any

__version__ = '0.1.0'

# transformers advises to install torch when it finds none; its tokenizers need none.
os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')

# Public name -> the module that has it, and its name there ('' = the module itself).
_PUBLIC = {
  'load_config': ('fedmedjax.api', 'load_config'),
  'load_data': ('fedmedjax.api', 'load_data'),
  'prepare': ('fedmedjax.api', 'prepare'),
  'run': ('fedmedjax.api', 'run'),
  'load_run': ('fedmedjax.api', 'load_run'),
  'load_results': ('fedmedjax.api', 'load_results'),
  'Results': ('fedmedjax.api', 'Results'),
  'federated_algorithm': ('fedmedjax.fed.round', 'federated_algorithm'),
  'Aggregator': ('fedmedjax.fed.types', 'Aggregator'),
  'Aggregate': ('fedmedjax.fed.types', 'Aggregate'),
  'LocalRule': ('fedmedjax.fed.types', 'LocalRule'),
  'Sharing': ('fedmedjax.fed.types', 'Sharing'),
  'LocalData': ('fedmedjax.fed.types', 'LocalData'),
  'Site': ('fedmedjax.api', 'Site'),
  'InputError': ('fedmedjax.types', 'InputError'),
  'fed': ('fedmedjax.fed', ''),
}
__all__ = ['__version__', *_PUBLIC]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
  if name not in _PUBLIC:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module, attribute = _PUBLIC[name]
  found = importlib.import_module(module)
  return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
  return sorted(__all__)

"""The federated core: pure functions on pytrees, which know no model and no notes.

    import fedmedjax as fm

    algorithm = fm.federated_algorithm(loss, num_sites=3, rule=fm.fed.rules.proximal(strength=0.1))

`fm.fed` finds its modules when they are first used.
"""

import importlib
from types import ModuleType

_MODULES = (
  'aggregators', 'anchors', 'buffered', 'builders', 'clusters', 'compression', 'correlated_noise',
  'dual', 'factors', 'flight', 'gauge', 'gradient',
  'ledger', 'local', 'participation', 'privacy', 'private_losses', 'private_sums', 'quarantine',
  'ranks', 'round', 'rules', 'server', 'sharing', 'sites', 'types')


def __getattr__(name: str) -> ModuleType:
  if name not in _MODULES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return importlib.import_module(f'{__name__}.{name}')


def __dir__() -> list[str]:
  return sorted(_MODULES)

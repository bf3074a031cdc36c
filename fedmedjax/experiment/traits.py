"""What the parts of a method are to each other, found out from what they do, never by their names.

An aggregator says what it `gives`. A sharing is asked about every leaf of the adapter in many
rounds, and a server optimiser is tried on two aggregates: a part of a user's own is thus judged as
the package's own are.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax

from fedmedjax.experiment import methods
from fedmedjax.experiment.methods import Method, Own, Values
from fedmedjax.experiment.own_parts import where_it_failed
from fedmedjax.fed.dual import GLOBAL, LOCAL
from fedmedjax.fed.sharing import moves
from fedmedjax.fed.types import Sharing
from fedmedjax.types import InputError

# What parts may give; of these only 'weighted_mean' is said, the others are found out.
GIVES: Mapping[str, str] = {
  'weighted_mean': 'the mean of the updates, weighted as config.fed says',
  'adds_aggregate': 'a server that adds the aggregate as it is',
  'shared_leaves': 'something that is shared',
  'all_leaves': 'every leaf trained and shared in every round',
  'moved_pairs': 'every leaf shared, and moved by the server in every round',
  'cores': 'cores of heads and their scalings trained and shared, and nothing else trained',
  'steady_leaves': 'the same leaves trained in every round',
  'whole_pairs': 'no pair of factors of which one is sent and the other trained at its site',
}
# Rounds in which a sharing is asked what is trained.
_ASKED = 24


class Traits(NamedTuple):
  """What all parts of a method together need, and what they give."""

  needs: frozenset[str]
  gives: frozenset[str]


def traits(
  values: Values, own: Own, parts: Method, paths: Sequence[str] | None = None
) -> Traits:
  """The traits of a method.

  Args:
    values: flat configuration, each value allowed on its own.
    own: the user's own parts, by key.
    parts: those that are functions alone, built.
    paths: of the adapter's leaves; None = as the configuration lets expect. Of a classifier they
      are not known before it is loaded, and a sharing of the user's own is not asked then.
  """
  gives = set(parts.aggregator.gives)
  if 'plain_server' in parts.needs and _adds_aggregate(parts.server_optimizer):
    gives.add('adds_aggregate')
  classifier = values['fed.learner'] == 'bert'
  if paths is None:
    paths = ['kernel'] if classifier else [
      f'layers/{name}/{factor}' for name in sorted(values['lora.targets'])
      for factor in ('abhs' if values['fed.heads'] else 'ab')]
    if classifier and ('fed.sharing' in own or values['fed.sharing'] not in (
        'everything', 'nothing')):
      # The former is asked later, the latter is refused: it selects factors.
      return Traits(parts.needs, frozenset(gives | GIVES.keys() - {'weighted_mean'}))
    if values['fed.local_rank']:
      paths = [f'{part}/{path}' for part in (GLOBAL, LOCAL) for path in paths]
  sharing = methods.sharing(values, own, paths)
  try:
    return Traits(parts.needs, frozenset(gives | of_sharing(sharing, paths)))
  except Exception as error:  # a user's program: it may raise anything
    name = values['fed.sharing']
    raise InputError(f'config.fed.sharing={name!r}: {where_it_failed(error, name)}') from None


def of_sharing(sharing: Sharing, paths: Sequence[str]) -> set[str]:
  """What a sharing gives, by asking it about every path in many rounds."""
  shared = {path: bool(sharing.shared(path)) for path in paths}
  trained = {
    path: [bool(sharing.trained(path, number)) for number in range(_ASKED)] for path in paths}
  gives = set()
  if any(shared[path] and any(trained[path]) for path in paths):
    gives.add('shared_leaves')
  if all(shared[path] and all(trained[path]) for path in paths):
    gives.add('all_leaves')
  cores = [path for path in paths if path.endswith('/h')]
  if cores and all(
      (path[-2:] in ('/h', '/s')) == any(trained[path]) and shared[path] for path in paths):
    gives.add('cores')
  if all(moves(sharing, path, number) for path in paths for number in range(_ASKED)):
    gives.add('moved_pairs')
  if all(len(set(numbers)) == 1 for numbers in trained.values()):
    gives.add('steady_leaves')
  split = any(
    shared[path] and any(trained[path]) and any(trained[other]) and not shared[other]
    for path in paths for other in _partners(path) if other in shared)
  return gives if split else gives | {'whole_pairs'}


def _partners(path: str) -> list[str]:
  """The path of the other factor of a pair; empty for a leaf that is no factor."""
  parent, _, name = path.rpartition('/')
  return [f'{parent}/{other}' for one, other in ('ab', 'ba') if name == one]


def _adds_aggregate(optimizer: optax.GradientTransformation) -> bool:
  """Whether a server optimiser takes two unlike aggregates as they are, one after the other."""
  adapter = {'layers': {'q_proj': {
    'a': np.full((1, 2, 1), 0.5, np.float32), 'b': np.full((1, 1, 2), -2.0, np.float32)}}}
  try:
    state = optimizer.init(adapter)
    for factor in (0.25, -3.0):
      gradient = jax.tree.map(lambda x: factor * x, adapter)  # noqa: B023 - called here
      step, state = optimizer.update(gradient, state, adapter)
      if any(not np.array_equal(one, -other) for one, other in zip(
          jax.tree.leaves(step), jax.tree.leaves(gradient), strict=True)):
        return False
  except Exception:  # noqa: BLE001 - `contracts.py` says what is wrong, on the true adapter
    return False
  return True

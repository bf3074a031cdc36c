"""Whether parts of a user's own do what `fed/types.py` says, tried before anything is compiled."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax import tree
from fedmedjax.experiment.methods import Method
from fedmedjax.experiment.own_parts import OwnPart
from fedmedjax.experiment.traits import of_sharing
from fedmedjax.fed.aggregators.conventions import completed, names_argument
from fedmedjax.fed.types import Sharing, Tree
from fedmedjax.types import InputError

# Longest axis of the adapter on which an aggregator's weights are tried; longer ones are cut.
_TRIED = 64
_CUT = 8


def check_own_parts(
  own: Mapping[str, OwnPart], parts: Method, sharing: Sharing, adapter: Tree, num_sites: int,
  cohort: int, has_validation: bool,
) -> None:
  """Raises InputError, in one line, for the first part that breaks its contract.

  Shapes and structures are found without computing; an aggregator is also called once, on small
  arrays, to see that its weights add to 1.

  Args:
    own: the user's parts, by key of the configuration; only these are tried.
    parts, sharing: the built ones.
    adapter: [*p].
    num_sites, cohort: S and C.
    has_validation: whether there is a validation set.
  """
  trials: dict[str, Callable[[], str | None]] = {
    'fed.aggregator': lambda: _aggregator_fault(
      parts.aggregator, adapter, num_sites, cohort, has_validation,
      'whole_pairs' in of_sharing(sharing, tree.paths(adapter))),
    'fed.rule': lambda: _rule_fault(parts.rule, adapter),
    'fed.server_optimizer': lambda: _server_fault(parts.server_optimizer, adapter),
    'fed.sharing': lambda: _sharing_fault(sharing, adapter),
  }
  for key in own.keys() & trials.keys():
    try:
      fault = trials[key]()
    except InputError:
      raise
    except Exception as error:  # a user's program: it may raise anything
      fault = f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'
    if fault:
      raise InputError(f'config.{key}={own[key].name!r}: {fault}')


def _difference(name: str, given: Tree, wanted: Tree) -> str | None:
  """How a tree of shapes is unlike the wanted one, if it is."""
  shapes = [
    {path: (*jnp.shape(leaf), str(jnp.result_type(leaf)))
     for path, leaf in zip(tree.paths(one), jax.tree.leaves(one), strict=True)}
    for one in (given, wanted)]
  if shapes[0] == shapes[1] and jax.tree.structure(given) != jax.tree.structure(wanted):
    return f'{name}: it is {jax.tree.structure(given)}, {jax.tree.structure(wanted)} is wanted'
  given, wanted = shapes
  for path in sorted(given.keys() | wanted.keys()):
    if given.get(path) != wanted.get(path):
      has, needs = (
        'is missing' if path not in leaves else f'is {leaves[path][-1]}{list(leaves[path][:-1])}'
        for leaves in (given, wanted))
      return f'{name}: leaf {path!r} {has}, {needs} is wanted' if path in wanted else (
        f'{name}: leaf {path!r} {has}, and no such leaf is wanted')
  return None


def _stacked(adapter: Tree, count: int) -> Tree:
  """[*p] -> [count, *p], as shapes."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((count, *jnp.shape(x)), jnp.result_type(x)), adapter)


def _arguments(adapter: Tree, has_validation: bool, whole_pairs: bool) -> dict[str, Any]:
  """Keyword arguments of an update that are no arrays of a size of their own."""
  def validation_loss(adapters):
    if not has_validation:
      raise InputError(
        'config.data.validation_share: no site has a note to spare for validation, and this '
        'aggregator asks for the validation loss')
    if not whole_pairs:
      raise InputError(
        'config.fed.sharing: a factor stays at its site, so that the server has no product that a '
        'validation loss could judge, and this aggregator asks for it')
    return jnp.zeros(jax.tree.leaves(adapters)[0].shape[0])

  def validation_gradient():
    validation_loss(jax.tree.map(lambda x: x[None], adapter))
    return jax.tree.map(jnp.zeros_like, adapter)

  return {
    'validation_loss': validation_loss, 'validation_gradient': validation_gradient,
    # As if V were one group of the first site.
    'answer_loss': lambda adapters: validation_loss(adapters)[:, None],
    'answer_slopes': lambda updates, step: validation_loss(updates)[:, None],
    'group_site': jnp.zeros(1, jnp.int32) if has_validation else None}


def _aggregator_fault(
  aggregator, adapter, num_sites, cohort, has_validation, whole_pairs
) -> str | None:
  named = names_argument(aggregator.update, 'start_loss')
  whole = completed(aggregator)

  def called(adapter, updates, local, weights, chosen):
    state = whole.init(adapter, num_sites)
    more = {'start_loss': jnp.ones(cohort)} if named else {}
    return state, whole.update(
      updates, state, weights=weights, cohort=chosen, anchor=adapter, local=local,
      num_steps=jnp.ones(cohort), key=jax.random.key(0),
      **_arguments(adapter, has_validation, whole_pairs), **more)

  many = _stacked(adapter, cohort)
  state, answer = jax.eval_shape(
    called, adapter, many, many, jax.ShapeDtypeStruct((cohort,), jnp.float32),
    jax.ShapeDtypeStruct((cohort,), jnp.int32))
  fault = _difference('its update', answer.update, adapter) or _difference(
    'its state after a round', answer.state, state)
  if fault or answer.weights.shape != (cohort,):
    return fault or f'its weights are {list(answer.weights.shape)}, [{cohort}] is wanted'
  small = jax.tree.map(
    lambda x: jnp.zeros([n if n <= _TRIED else _CUT for n in jnp.shape(x)], jnp.float32), adapter)
  rng = np.random.default_rng(0)
  updates = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=(cohort, *x.shape)), jnp.float32), small)
  try:
    _, answer = called(
      small, updates, updates, jnp.arange(1.0, cohort + 1), jnp.arange(cohort, dtype=jnp.int32))
  except Exception:  # noqa: BLE001 - one that knows the adapter's widths cannot be tried on others
    return None
  total = float(answer.weights.sum())
  return None if abs(total - 1) < 1e-3 else (
    f'its weights add to {total:.4g}; 1 is allowed, and 0 where no site can be used')


def _rule_fault(rule, adapter) -> str | None:
  def called(adapter):
    server, site = rule.init(adapter)
    gradient = rule.correct(adapter, adapter, adapter, server, site)
    after, delta = rule.finish(adapter, adapter, jnp.int32(1), server, site)
    return server, site, gradient, after, delta, rule.server(adapter, server)

  server, site, gradient, after, delta, given = jax.eval_shape(called, adapter)
  return (
    _difference('its corrected gradient', gradient, adapter)
    or _difference('its site_ctrl after a round', after, site)
    or _difference('its ctrl_delta', delta, server)
    or _difference('what it gives the server optimiser', given, adapter))


def _server_fault(optimizer, adapter) -> str | None:
  def called(adapter):
    state = optimizer.init(adapter)
    step, after = optimizer.update(adapter, state, adapter)
    return state, step, after

  state, step, after = jax.eval_shape(called, adapter)
  return _difference('its step', step, adapter) or _difference(
    'its state after a round', after, state)


def _sharing_fault(sharing, adapter) -> str | None:
  paths = tree.paths(adapter)
  if not any(bool(sharing.trained(path, number)) for path in paths for number in (0, 1)):
    return f'it trains none of the leaves {", ".join(paths)}'
  return None

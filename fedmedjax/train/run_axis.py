"""Rounds of several runs as one compiled program, along a leading axis of runs [E, ...].

A run is a pure function of its arrays: what it starts from, its examples, its key and, of the
hyper-parameters, those that are numbers (`experiment/traced.py`). Runs whose other choices are
equal are stacked; arrays that differ in length are padded by steps that nobody takes and places of
weight zero, so that every run computes what it would alone. The base is there once for all.

On a CPU the program takes one run after the other: at once (vmap) they took a quarter longer, for
want of cache, and would compute all shapes of a step. On an accelerator they are computed together.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax import tree
from fedmedjax.experiment.execution import Execution
from fedmedjax.experiment.traced import as_arrays
from fedmedjax.experiment.types import Study
from fedmedjax.fed.local import mean_loss
from fedmedjax.fed.round import site_adapter
from fedmedjax.fed.sharing import shares_all
from fedmedjax.fed.sites import map_sites
from fedmedjax.fed.types import FedState, LocalData, Validation

# Programs are compiled more than they are run: what LLVM leaves out is not missed (measured).
_COMPILED = {'xla_llvm_disable_expensive_passes': True}
# Runs are padded to one shape where the largest has at most so many times the numbers of another.
_WASTE = 1.5


class Shapes(NamedTuple):
  """What the arrays of a round are padded to."""

  steps: int   # K
  judged: int  # Q, of the validation set; 0 = there is none
  blank: Any   # a step without examples

  def key(self) -> str:
    return repr((self.steps, self.judged, [
      (leaf.shape, leaf.dtype.str) for leaf in jax.tree.leaves(self.blank)]))

  @property
  def numbers(self) -> int:
    """How many numbers the steps of a site and V have."""
    return (self.steps + self.judged) * sum(leaf.size for leaf in jax.tree.leaves(self.blank))


class Program(NamedTuple):
  """The compiled functions of E runs."""

  init: Callable    # (numbers {key: [E]}, adapters [E, *p]) -> states [E, ...]
  # (states, base, numbers {key: [E]}, data, cohorts, validation, keys) -> (states, metrics), all
  # but base [E, ...]; the states are given away
  rounds: Callable
  # (states, base, validation) -> f32[E], `mean_loss`; where sites have adapters of their own, the
  # mean over them
  judged: Callable
  numbers: tuple[str, ...]   # keys that it takes as numbers
  execution: Execution
  lock: Any         # of the thread that compiles: the others wait rather than compile it, too


def shapes_of(study: Study) -> Shapes:
  """Those of a run alone."""
  return Shapes(
    study.schedule.most_steps, 0 if study.validation is None else len(study.validation.group),
    study.schedule.layout.blank)


def kin(study: Study) -> str:
  """A text that is equal for runs whose arrays can be padded to one shape."""
  adapter, validation = study.trainable.adapter, study.validation
  # Whatever sets the shapes of the state is in them: places of adapters in flight, clusters.
  state = jax.eval_shape(study.algorithm.init, adapter)
  return repr((
    len(study.schedule.weights), study.communication.sampler.size,
    study.schedule.layout.groups, jax.tree.structure(study.schedule.layout.blank),
    [(leaf.ndim, leaf.dtype.str, 0 in leaf.shape)
     for leaf in jax.tree.leaves(study.schedule.layout.blank)],
    [(path, leaf.shape) for path, leaf in zip(
      tree.paths(adapter), jax.tree.leaves(adapter), strict=True)],
    jax.tree.structure(state), [(leaf.shape, leaf.dtype.name) for leaf in jax.tree.leaves(state)],
    validation and (validation.group.shape[1], validation.group.dtype.str)))


def same_base(one: Study, other: Study) -> bool:
  """Whether both train on the same frozen weights."""
  ours, theirs = one.trainable.base, other.trainable.base
  return ours is theirs or (
    jax.tree.structure(ours) == jax.tree.structure(theirs) and all(
      a is b or a.shape == b.shape and np.array_equal(a, b)
      for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)))


def common(shapes: Sequence[Shapes]) -> Shapes:
  """The least shapes that hold all of these, which are of kin."""
  def largest(*leaves):
    return _grown(leaves[0], tuple(map(max, zip(*(leaf.shape for leaf in leaves), strict=True))))

  return Shapes(
    max(one.steps for one in shapes), max(one.judged for one in shapes),
    jax.tree.map(largest, *(one.blank for one in shapes)))


def wasteful(one: Shapes, whole: Shapes) -> bool:
  """Whether padding a run to these shapes would cost more than a program of its own is worth."""
  return whole.numbers > _WASTE * one.numbers


def holds(whole: Shapes, one: Shapes) -> bool:
  """Whether arrays of shapes `one` can be padded to `whole`."""
  return common([whole, one]).key() == whole.key()


def _grown(leaf: np.ndarray, shape: Sequence[int]) -> np.ndarray:
  """A leaf of a step without examples, all of one value, in a larger shape."""
  return np.full(shape, leaf.reshape(-1)[0] if leaf.size else 0, leaf.dtype)


def _filled(values: np.ndarray, whole: np.ndarray, lead: tuple[int, ...]) -> np.ndarray:
  """`values` [*l, *s] in the corner of [*lead, *whole.shape], which `whole` is repeated in."""
  if values.shape == (*lead, *whole.shape):
    return values
  out = np.broadcast_to(whole, (*lead, *whole.shape)).copy()
  out[tuple(map(slice, values.shape))] = values
  return out


def padded_data(data: LocalData, shapes: Shapes) -> LocalData:
  """A round's examples [C, K, ...] with the steps and the places of `shapes`."""
  lead = len(data.weight), shapes.steps
  mask = np.zeros(lead, bool)
  mask[:, :data.step_mask.shape[1]] = data.step_mask
  return data._replace(
    batches=jax.tree.map(partial(_filled, lead=lead), data.batches, shapes.blank), step_mask=mask,
    weight=np.asarray(data.weight, np.float32))


def padded_validation(validation: Validation | None, shapes: Shapes) -> Validation | None:
  """V [Q, ...] with the steps and the places of `shapes`.

  Steps that are added repeat the last one, whose loss is finite, and belong to no group.
  """
  if validation is None:
    return None
  count = len(validation.group)
  batches = jax.tree.map(
    partial(_filled, lead=(count,)), validation.batches, shapes.blank)

  def longer(x, again: bool):
    rest = np.repeat(x[-1:], shapes.judged - count, axis=0)
    return np.concatenate([x, rest if again else np.zeros_like(rest)])

  return validation._replace(
    batches=jax.tree.map(partial(longer, again=True), batches),
    group=longer(np.asarray(validation.group), False),
    answers=None if validation.answers is None else longer(
      np.asarray(validation.answers), False))


def stacked(trees: Sequence[Any]) -> Any:
  """Trees of equal shapes [*p] as one of [E, *p]."""
  return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def taken(trees: Any, place: int) -> Any:
  """One run's of trees [E, *p] -> [*p]."""
  return jax.tree.map(lambda leaf: leaf[place], trees)


def numbers_of_all(runs: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, np.ndarray]:
  """{key: [E, ...]} of the flat configurations of E runs."""
  return stacked([as_arrays(values, keys) for values in runs]) if keys else {}


def round_keys(seeds: Sequence[int], number: int) -> jax.Array:
  """The keys [E] of round `number`, as `loop` has that of each run."""
  keys = jnp.stack([jax.random.key(seed) for seed in seeds])
  return jax.vmap(partial(jax.random.fold_in, data=number))(keys)


def program(
  study: Study, execution: Execution, numbers: Sequence[str], at_once: int
) -> Program:
  """The program of all runs that are stacked with `study`.

  Args:
    study: of any of them; what it chooses by its data for speed alone, the others have, too.
    execution: how sites are laid out.
    numbers: keys that are given as arrays.
    at_once: runs that are computed together; 1 = one after the other, 0 = all.
  """
  over = map_sites(at_once).every if at_once != 1 else _one_by_one
  loss_fn = study.step_loss(execution.remat)

  def first(given, adapter):
    # A state may begin with a hyper-parameter, as v = tau^2 of the adaptive servers.
    return study.algorithm_with(execution, given, at_once).init(adapter)

  def one(base, state, given, data, cohort, validation, key):
    algorithm = study.algorithm_with(execution, given, at_once)
    return algorithm.round(state, base, data, cohort, validation, key)

  def rounds(states, base, *more):
    return over(partial(one, base))(states, *more)

  sites = 1 if shares_all(study.sharing, study.trainable.adapter) else len(study.schedule.weights)

  def judged(states, base, validation):
    def loss(state, own):
      return jnp.mean(jax.lax.map(lambda site: mean_loss(
        loss_fn, site_adapter(state, study.sharing, site), base, own), jnp.arange(sites)))

    return over(loss)(states, validation)

  options = _COMPILED if jax.default_backend() == 'cpu' else None
  return Program(
    jax.jit(jax.vmap(first)),
    jax.jit(rounds, donate_argnums=0, compiler_options=options),
    jax.jit(judged, compiler_options=options), tuple(numbers), execution, threading.Lock())


def _one_by_one(fn: Callable) -> Callable:
  """fn over [E, ...], one after the other."""
  return lambda *stacks: jax.lax.map(lambda own: fn(*own), stacks)


def first_states(
  shared: Program, studies: Sequence[Study], given: Mapping[str, np.ndarray]
) -> FedState:
  """The states [E, ...] before the first round; `given` is of `numbers_of_all`."""
  with shared.lock:
    return shared.init(given, stacked([
      jax.tree.map(np.asarray, study.trainable.adapter) for study in studies]))

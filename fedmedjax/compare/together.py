"""Runs of one method on unlike data, trained together as one compiled program.

A run of a word tagger is so small that compiling its round takes longer than all of its steps.
Here the rounds of several runs, which differ in their seeds and data only, are one program that
takes one after the other along a leading axis N: at once (vmap) they took a quarter longer on two
cores, for want of cache. The numbers are those of the single runs up to rounding (tested).
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax.data import schedule as schedules
from fedmedjax.eval import evaluate
from fedmedjax.experiment.types import Study
from fedmedjax.fed import participation
from fedmedjax.fed.clusters import has_clusters
from fedmedjax.fed.round import site_adapter
from fedmedjax.fed.sharing import shares_all
from fedmedjax.fed.types import FedState, LocalData, Validation

# Programs are compiled more than they are run: what LLVM leaves out is not missed (measured).
_COMPILED = {'xla_llvm_disable_expensive_passes': True}


class Program(NamedTuple):
  """The two functions of a method, for N runs."""

  init: Callable    # (adapters [N, *p]) -> states [N, ...]
  rounds: Callable  # (states, base, data, cohorts, validation, keys), all but base [N, ...]


class Outcome(NamedTuple):
  """What came of a run."""

  f1: dict[str, float]   # typed strict micro F1 of entities, by tested cohort
  loss: float            # mean training loss of the last round's steps, nats per word
  weights: list[float]   # of the sites in the last round
  seconds: float         # of training and scoring: its share of what the runs took together


def program(study: Study) -> Program:
  """The program that all runs with the method, the sites and the shapes of `study` share."""
  algorithm = study.algorithm

  def rounds(states, base, *more):
    return jax.lax.map(
      lambda own: algorithm.round(own[0], base, *own[1:]), (states, *more))

  return Program(jax.jit(jax.vmap(algorithm.init)), jax.jit(
    rounds, donate_argnums=0, compiler_options=_COMPILED))


def outcomes(
  studies: Mapping[Any, Study], shared: Program, scored: Callable[[Any, Outcome], None]
) -> None:
  """Trains and scores runs of one method.

  Args:
    studies: by a name of each; they differ in seeds and data. Those whose arrays have unlike shapes
      are trained one after the other.
    shared: of `program`.
    scored: called with the name and the outcome of each run.
  """
  for name, state, loss, weights, each in final_states(studies, shared):
    begun = time.monotonic()
    f1 = scores(studies[name], state)
    scored(name, Outcome(f1, loss, weights, each + time.monotonic() - begun))


def final_states(
  studies: Mapping[Any, Study], shared: Program
) -> Iterator[tuple[Any, FedState, float, list[float], float]]:
  """(name, last state, mean loss, weights, seconds) of each run, see `outcomes`."""
  validations = _padded({name: study.validation for name, study in studies.items()})
  alike: dict[str, list] = defaultdict(list)
  for name, study in studies.items():
    alike[str(_shapes((_round_data(study, 0), validations[name])))].append(name)
  for names in alike.values():
    begun = time.monotonic()
    found = _trained([studies[name] for name in names], [validations[n] for n in names], shared)
    each = (time.monotonic() - begun) / len(names)
    for name, (state, loss, weights) in zip(names, found, strict=True):
      yield name, state, loss, weights, each


def _shapes(arrays: Any) -> Any:
  return jax.tree.map(np.shape, arrays)


def _round_data(study: Study, number: int) -> tuple[LocalData, np.ndarray]:
  """What a round trains on, and the numbers of its sites."""
  steps = np.asarray([len(own) for own in study.schedule.plan[number]])
  # Without a deadline nothing depends on how long the messages are, whose count takes its time.
  turn = participation.round_participation(
    study.communication.sampler, study.communication.fleet, number,
    sizes=study.schedule.weights, planned=steps, bytes_down=0 * steps, bytes_up=0 * steps)
  batches, mask = schedules.round_arrays(
    study.schedule, number, turn.cohort.sites, turn.steps)
  delay = turn.arrivals and turn.arrivals.delay
  return LocalData(batches, mask, turn.weights, delay=delay), turn.cohort.sites


def _padded(validations: Mapping[Any, Validation | None]) -> dict[Any, Validation | None]:
  """Sets V with as many steps as the longest: steps of weight zero that belong to no group."""
  most = max((len(v.group) for v in validations.values() if v is not None), default=0)

  def longer(validation: Validation) -> Validation:
    missing = most - len(validation.group)

    def pad(x):
      return np.concatenate([x, np.zeros_like(x, shape=(missing, *x.shape[1:]))])

    batches = jax.tree.map(pad, validation.batches)
    # What a site annotates is a mask of logits: zeros alone would be none at all.
    allowed = np.concatenate([validation.batches.allowed, np.ones_like(
      validation.batches.allowed, shape=(missing, *validation.batches.allowed.shape[1:]))])
    return validation._replace(
      batches=batches._replace(allowed=allowed), group=pad(validation.group),
      answers=pad(validation.answers))

  return {name: v and longer(v) for name, v in validations.items()}


def _stacked(trees: Sequence[Any]) -> Any:
  return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _trained(
  studies: Sequence[Study], validations: Sequence[Validation | None], shared: Program
) -> list[tuple[FedState, float, list[float]]]:
  """The last state, mean loss and weights of each run; see `Outcome`."""
  base, rounds = studies[0].trainable.base, studies[0].options.rounds
  validation = _stacked(validations)
  states = shared.init(_stacked([study.trainable.adapter for study in studies]))
  keys = jnp.stack([jax.random.key(study.options.seed) for study in studies])
  # Of a private run, as `train/loop.py` has it.
  tags = np.asarray([study.ledger.tag if study.ledger else 0 for study in studies], np.uint32)
  for number in range(rounds):
    data, cohorts = zip(*(_round_data(study, number) for study in studies), strict=True)
    own = jax.vmap(partial(jax.random.fold_in, data=number))(keys)
    if studies[0].ledger:
      own = jax.vmap(jax.random.fold_in)(own, tags)
    states, metrics = shared.rounds(
      states, base, _stacked(data), np.stack(cohorts), validation, own)
  losses, weights = np.asarray(metrics.train_loss), np.asarray(metrics.weights)
  return [
    (jax.tree.map(lambda x, i=i: x[i], states), float(np.nanmean(losses[i])), weights[i].tolist())
    for i in range(len(studies))]


def scores(study: Study, state: FedState) -> dict[str, float]:
  """F1 by tested cohort; where sites have adapters of their own, their counts add up."""
  alone = shares_all(study.sharing, study.trainable.adapter) and not has_clusters(state)
  number = 1 if alone else len(study.schedule.weights)
  adapters = [site_adapter(state, study.sharing, site) for site in range(number)]
  found = {}
  for site in study.data.tested:
    answers = [study.trainable.answer(one, site, lambda count: None) for one in adapters]
    score = evaluate.score(site, answers, study.options.seed, 1)
    found[site.name] = score.scores['ner']['strict']['typed']['f1']
  return found

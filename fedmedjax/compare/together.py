"""Runs of one method on unlike data, trained together as one compiled program, and their F1.

A run of a word tagger is so small that compiling its round takes longer than all of its steps.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedmedjax.data import schedule as schedules
from fedmedjax.eval import evaluate
from fedmedjax.experiment.types import Study
from fedmedjax.fed import participation
from fedmedjax.fed.clusters import has_clusters
from fedmedjax.fed.round import site_adapter
from fedmedjax.fed.sharing import shares_all
from fedmedjax.fed.types import FedState, LocalData
from fedmedjax.train import run_axis
from fedmedjax.train.run_axis import Program


class Outcome(NamedTuple):
  """What came of a run."""

  f1: dict[str, float]   # typed strict micro F1 of entities, by tested cohort
  loss: float            # mean training loss of the last round's steps, nats per word
  weights: list[float]   # of the sites in the last round
  seconds: float         # of training and scoring: its share of what the runs took together


def program(study: Study) -> Program:
  """The program that all runs with the method and the number of sites of `study` share."""
  return run_axis.program(study, study.executions[0], (), 1)


def outcomes(
  studies: Mapping[Any, Study], shared: Program, scored: Callable[[Any, Outcome], None]
) -> None:
  """Trains and scores runs of one method.

  Args:
    studies: by a name of each; they differ in seeds and data. Those whose arrays cannot be padded
      to one shape are trained one after the other.
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
  alike: dict[str, list] = defaultdict(list)
  for name, study in studies.items():
    # Steps of a private run are not padded: what they draw is of their shape.
    own = run_axis.shapes_of(study).key() if study.ledger else ''
    alike[run_axis.kin(study) + own].append(name)
  for names in alike.values():
    begun = time.monotonic()
    found = _trained([studies[name] for name in names], shared)
    each = (time.monotonic() - begun) / len(names)
    for name, (state, loss, weights) in zip(names, found, strict=True):
      yield name, state, loss, weights, each


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


def _trained(
  studies: Sequence[Study], shared: Program
) -> list[tuple[FedState, float, list[float]]]:
  """The last state, mean loss and weights of each run; see `Outcome`."""
  base, rounds = studies[0].trainable.base, studies[0].options.rounds
  shapes = run_axis.common([run_axis.shapes_of(study) for study in studies])
  validation = run_axis.stacked([
    run_axis.padded_validation(study.validation, shapes) for study in studies])
  states = run_axis.first_states(shared, studies, {})
  # Of a private run, as `train/loop.py` has it.
  tags = np.asarray([study.ledger.tag if study.ledger else 0 for study in studies], np.uint32)
  for number in range(rounds):
    data, cohorts = zip(*(_round_data(study, number) for study in studies), strict=True)
    own = run_axis.round_keys([study.options.seed for study in studies], number)
    if studies[0].ledger:
      own = jax.vmap(jax.random.fold_in)(own, tags)
    states, metrics = shared.rounds(
      states, base, {}, run_axis.stacked([run_axis.padded_data(one, shapes) for one in data]),
      np.stack(cohorts), validation, own)
  losses, weights = np.asarray(metrics.train_loss), np.asarray(metrics.weights)
  return [
    (run_axis.taken(states, i), float(np.nanmean(losses[i])), weights[i].tolist())
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

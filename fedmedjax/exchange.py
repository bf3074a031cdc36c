"""Who meets in a round and what they send: from the configuration, and for a round's line."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from fedmedjax.data import schedule as schedules
from fedmedjax.data.schedule import Schedule
from fedmedjax.fed import ledger, participation
from fedmedjax.fed import outbound as outbounds
from fedmedjax.fed.ledger import Exchange
from fedmedjax.fed.participation import Fleet, Sampler, Turnout
from fedmedjax.fed.rules import SENT_CONTROL
from fedmedjax.fed.types import Sharing
from fedmedjax.method import aggregator

# (sizes f[S], C, seed) -> Sampler
SAMPLERS = {
  'uniform': lambda sizes, count, seed: participation.uniform(len(sizes), count, seed),
  'size': participation.by_size,
  'poisson': lambda sizes, count, seed: participation.poisson(len(sizes), count, seed),
}
# (block) -> Codec
CODECS = {
  'float32': lambda block: outbounds.float32(), 'bfloat16': lambda block: outbounds.bfloat16(),
  'int8': lambda block: outbounds.quantised(8, block),
  'int4': lambda block: outbounds.quantised(4, block), 'sign': outbounds.sign,
}


class Meeting(NamedTuple):
  """Who takes part in the rounds, and what one site sends. Pooled, one place that sends nothing."""

  sampler: Sampler
  fleet: Fleet
  exchange: Callable[[int], Exchange]   # the messages of one site in a round, from 0


def codec(fed: ConfigDict) -> outbounds.Codec:
  """config.fed's format of an update."""
  return outbounds.top_k(fed.top_k, CODECS[fed.outbound](fed.block))


def outbound(fed: ConfigDict) -> optax.GradientTransformationExtraArgs:
  return outbounds.outbound(
    codec(fed), clip_norm=fed.clip_update, error_feedback=fed.error_feedback)


def _sampler(config: ConfigDict, sizes: np.ndarray) -> Sampler:
  fed = config.fed
  return SAMPLERS[fed.sampler](sizes, fed.cohort_size or len(sizes), config.seed)


def cohorts(config: ConfigDict, sizes: np.ndarray) -> list[list[int]]:
  """The sites of each round, padding left out; `sizes` is f[S] n_k."""
  sampler = _sampler(config, sizes)
  drawn = [sampler.draw(number) for number in range(config.fed.rounds)]
  return [cohort.sites[cohort.present].tolist() for cohort in drawn]


def meeting(config: ConfigDict, sizes: np.ndarray, adapter, sharing: Sharing) -> Meeting:
  """The `Meeting` that config.fed and config.simulation ask for.

  Args:
    sizes: f[S] n_k, the same as for `cohorts`; pooled, its one entry is not looked at.
    adapter, sharing: what one site's messages are made of.
  """
  if config.fed.pooled:
    return Meeting(
      participation.uniform(1, 1, config.seed), participation.lognormal_fleet(1, config.seed),
      lambda number: Exchange((), ()))
  fleet = participation.lognormal_fleet(
    len(sizes), config.seed, **config.simulation.to_dict())
  control = adapter if config.fed.rule in SENT_CONTROL else ()
  fold = jax.eval_shape(aggregator(config, rounds=1).fold, adapter)

  @cache
  def exchange(number):
    # Sites are sent what the round before folded into the base.
    return ledger.exchange(
      adapter, sharing, codec(config.fed), number, control=control,
      residual=fold if number else ())

  return Meeting(_sampler(config, sizes), fleet, exchange)


def turnout(meeting: Meeting, schedule: Schedule, number: int) -> Turnout:
  """How round `number` goes; see `participation.turnout`."""
  exchanged = meeting.exchange(number)
  return participation.turnout(
    meeting.sampler, meeting.fleet, number, sizes=schedule.weights,
    planned=np.asarray([len(one) for one in schedule.plan[number]]),
    bytes_down=ledger.num_bytes(exchanged.down), bytes_up=ledger.num_bytes(exchanged.up))


def turnout_line(
  meeting: Meeting, schedule: Schedule, number: int, turn: Turnout, names: Sequence[str]
) -> dict:
  """The part of a round's line that is known without training: who, how much, how long.

  Lists are in the order of `sites`, the cohort. A site that sent nothing has 0 `steps`; what it
  was sent counts all the same.
  """
  here, (sites, steps) = turn.cohort.present, (turn.cohort.sites, turn.steps)
  examples, tokens = schedules.round_work(schedule, number, sites, steps)
  exchanged = meeting.exchange(number)
  down = np.full(len(sites), ledger.num_bytes(exchanged.down))[here]
  up = np.where(steps > 0, ledger.num_bytes(exchanged.up), 0)[here]
  return {
    'round': number + 1, 'sites': [names[site] for site in sites[here]], 'steps': steps[here],
    'local_steps': steps.sum(),
    # Steps taken over steps laid out: sites computed together wait for the longest.
    'useful_step_share': steps.sum() / (len(steps) * schedule.most_steps),
    'examples': examples, 'tokens': tokens, 'bytes_up': up.sum(), 'bytes_down': down.sum(),
    'site_bytes_up': up, 'site_bytes_down': down,
    'site_seconds': turn.seconds[here], 'simulated_seconds': turn.round_seconds,
  }


def ledger_csv(meeting: Meeting, lines: Iterable[dict]) -> str:
  """The ledger of a run, a line a (round, site, tensor), from the rounds' lines."""
  rounds = [
    (line['round'], meeting.exchange(line['round'] - 1), line['sites'],
     [count > 0 for count in line['steps']])
    for line in lines]
  rows = ledger.table(rounds)
  return '\n'.join(
    [','.join(ledger.Row._fields), *(','.join(map(str, row)) for row in rows)]) + '\n'

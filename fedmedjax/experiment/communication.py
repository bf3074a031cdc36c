"""Who meets in a round and what they send: from the configuration, and for a round's line."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache, lru_cache, partial
from typing import NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from fedmedjax.data import schedule as schedules
from fedmedjax.data.schedule import Schedule
from fedmedjax.experiment.methods import Method
from fedmedjax.fed import compression, contribution, ledger, participation
from fedmedjax.fed.aggregators.conventions import names_argument
from fedmedjax.fed.buffered import buffered
from fedmedjax.fed.compression import CODECS
from fedmedjax.fed.factors import room
from fedmedjax.fed.ledger import Exchange
from fedmedjax.fed.participation import SAMPLERS, Fleet, Participation, Sampler
from fedmedjax.fed.ranks import cut, rank_first
from fedmedjax.fed.types import Sharing, Tree


class Communication(NamedTuple):
  """Who takes part in the rounds, and what they send. Pooled, one place that sends nothing."""

  sampler: Sampler
  fleet: Fleet
  # (round from 0, earlier rounds that changed nothing, bool[C] who sent an update; None = all that
  # are present) -> the messages of each site of the cohort
  exchange: Callable[..., tuple[Exchange, ...]]


def codec(fed: ConfigDict) -> compression.Codec:
  """config.fed's format of an update."""
  return compression.top_k(fed.top_k, CODECS[fed.outbound](fed.block))


def sender(
  fed: ConfigDict, form: compression.Codec | None = None
) -> optax.GradientTransformationExtraArgs:
  """What a site does to its update [*p] before it sends it.

  Args:
    fed: of the configuration.
    form: the codec, where it is not the configuration's own.
  """
  compressed = compression.outbound(
    form or codec(fed), clip_norm=fed.clip_update, error_feedback=fed.error_feedback)
  return rank_first(compressed) if fed.ranks else compressed


def site_sampler(
  config: ConfigDict, sizes: np.ndarray, steps: np.ndarray | None = None
) -> Sampler:
  """Draws the sites of each round; a round that was drawn is kept.

  Args:
    sizes: f32[S] n_k.
    steps: i[S], those that a site takes in a round, which config.fed.buffer asks for; None = it
      does not.
  """
  fed = config.fed
  if fed.buffer and not fed.pooled and steps is not None:
    fleet = participation.lognormal_fleet(len(sizes), config.seed, **config.simulation.to_dict())
    return buffered(
      np.where(steps > 0, steps * fleet.step_seconds, np.inf), fed.cohort_size or len(sizes),
      fed.buffer, config.seed)
  sampler = SAMPLERS[fed.sampler](sizes, fed.cohort_size or len(sizes), config.seed)
  # A site's last round is looked for in all rounds before.
  return sampler._replace(draw=cache(sampler.draw))


def cohorts(sampler: Sampler, rounds: int) -> list[list[int]]:
  """The sites of each round, padding left out."""
  drawn = [sampler.draw(number) for number in range(rounds)]
  return [cohort.sites[cohort.present].tolist() for cohort in drawn]


def plan_communication(
  config: ConfigDict, sampler: Sampler, parts: Method, adapter: Tree, sharing: Sharing,
  judges: Collection[int] = (),
) -> Communication:
  """The `Communication` that config.fed and config.simulation ask for.

  Args:
    sampler: of `site_sampler`; pooled, it is not looked at.
    parts: whose control variates and columns for the base travel.
    adapter, sharing: what one site's messages are made of; adapter is [*p].
    judges: numbers of the sites that are sent the others' adapters and judge them, or coalitions
      of them.
  """
  fed, rank = config.fed, config.lora.rank
  if fed.pooled:
    return Communication(
      participation.uniform(1, 1, config.seed), participation.lognormal_fleet(1, config.seed),
      lambda number, skipped=(), sent=None: (Exchange((), ()),))
  num_sites = len(sampler.inclusion)
  fleet = participation.lognormal_fleet(num_sites, config.seed, **config.simulation.to_dict())
  ranks = fed.ranks or (rank,) * num_sites
  update_codec = codec(fed)
  server_ctrl, _ = jax.eval_shape(parts.rule.init, adapter)
  controlled = parts.rule.control_travels and bool(jax.tree.leaves(server_ctrl))

  # Not all of them: a run has as many as rounds times sites.
  @lru_cache(1024)
  def messages(site_rank, number, last, skipped, judged, coalitions):
    one = cut(adapter, site_rank) if fed.ranks else adapter
    folded = sum(
      parts.aggregator.columns([ranks[site] for site in sampler.draw(past).sites])
      for past in range(max(last, 0), number) if past not in skipped)
    # Factors take turns by the rounds that changed something.
    happened = lambda until: until - sum(past < until for past in skipped)  # noqa: E731
    return ledger.exchange(
      one, sharing, update_codec, happened(number),
      last if last == participation.NEVER else happened(last),
      control=one if controlled else (),
      residual=jax.eval_shape(partial(room, columns=folded), adapter) if folded else (),
      masked=fed.secure_aggregation,
      start_loss=names_argument(parts.aggregator.update, 'start_loss'),
      judged=[(cut(adapter, other) if fed.ranks else adapter, count) for other, count in judged],
      peers='peers' in parts.needs, coalitions=coalitions)

  def exchange(number, skipped=(), sent=None):
    last = participation.last_taken(sampler, number)
    before = tuple(past for past in skipped if past < number)
    cohort = sampler.draw(number)
    arrived = set(cohort.sites[cohort.present if sent is None else np.asarray(sent)].tolist())
    by_rank = Counter(ranks[site] for site in arrived)

    def judged(site):
      if site not in judges or site not in arrived:
        return ()
      return tuple(sorted((by_rank - Counter([ranks[site]])).items()))

    return tuple(
      messages(
        ranks[site], number, int(last[site]), before, judged(site),
        contribution.coalitions(
          fed.contribution, sampler.size, len(arrived), fed.contribution_samples)
        if site in judges and site in arrived else 0)
      for site in cohort.sites.tolist())

  return Communication(sampler, fleet, exchange)


def skipped_rounds(lines: Iterable[dict]) -> tuple[int, ...]:
  """The rounds, from 0, that changed nothing, by the lines of all rounds so far."""
  return tuple(number for number, line in enumerate(lines) if line.get('skipped'))


def _lengths(
  communication: Communication, number: int, skipped: Sequence[int],
  sent: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """(bytes down, bytes up) i64[C] of the messages of the cohort's sites; see `Communication`."""
  exchanges = communication.exchange(number, skipped, sent)
  return (
    np.asarray([ledger.num_bytes(one.down) for one in exchanges]),
    np.asarray([ledger.num_bytes(one.up) for one in exchanges]))


def round_participation(
  communication: Communication, schedule: Schedule, number: int, skipped: Sequence[int] = ()
) -> Participation:
  """How round `number` goes after `skipped_rounds`; see `participation.round_participation`."""
  down, up = _lengths(communication, number, skipped)
  return participation.round_participation(
    communication.sampler, communication.fleet, number, sizes=schedule.weights,
    planned=np.asarray([len(one) for one in schedule.plan[number]]),
    bytes_down=down, bytes_up=up)


def participation_line(
  communication: Communication, schedule: Schedule, number: int, turn: Participation,
  names: Sequence[str], skipped: Sequence[int] = (),
) -> dict:
  """The part of a round's line that is known without training: who, how much, how long.

  Lists are in the order of `sites`, the cohort. A site that sent nothing has 0 `steps`; what it
  was sent counts all the same. `skipped` is that of `skipped_rounds`.
  """
  here, (sites, steps) = turn.cohort.present, (turn.cohort.sites, turn.steps)
  examples, tokens = schedules.round_work(schedule, number, sites, steps)
  down, up = _lengths(communication, number, skipped, steps > 0)
  down, up = down[here], np.where(steps > 0, up, 0)[here]
  return {
    'round': number + 1, 'sites': [names[site] for site in sites[here]], 'steps': steps[here],
    'local_steps': steps.sum(),
    'examples': examples, 'tokens': tokens, 'bytes_up': up.sum(), 'bytes_down': down.sum(),
    'site_bytes_up': up, 'site_bytes_down': down,
    'site_seconds': turn.seconds[here], 'simulated_seconds': turn.round_seconds,
  } | ({'staleness': turn.arrivals.delay.stale} if turn.arrivals else {})


def ledger_csv(communication: Communication, lines: Iterable[dict]) -> str:
  """The ledger of a run, a line a (round, site, tensor), from the rounds' lines."""
  lines = list(lines)
  skipped = skipped_rounds(lines)
  rounds = []
  for line in lines:
    sent = [count > 0 for count in line['steps']]
    # Those that are present come first in a cohort.
    absent = [False] * (communication.sampler.size - len(sent))
    exchanges = communication.exchange(line['round'] - 1, skipped, [*sent, *absent])
    rounds.append((line['round'], line['sites'], exchanges[:len(sent)], sent))
  rows = ledger.table(rounds)
  return '\n'.join(
    [','.join(ledger.Row._fields), *(','.join(map(str, row)) for row in rows)]) + '\n'

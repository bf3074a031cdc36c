"""A round between hospitals, as the server plays it: questions, answers, the next state."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedmedjax.deploy.conversation import Conversation, Missing, Question
from fedmedjax.deploy.judges import FewerJudges, Judges, columns_between
from fedmedjax.deploy.keeping import NEVER
from fedmedjax.deploy.messages import Message
from fedmedjax.experiment.communication import skipped_rounds
from fedmedjax.experiment.deployed import ServerStudy
from fedmedjax.experiment.execution import Execution
from fedmedjax.experiment.round_log import check_round, metrics_line
from fedmedjax.fed import apart, wire
from fedmedjax.fed.aggregators.conventions import names_argument
from fedmedjax.fed.participation import Participation, Sampler
from fedmedjax.fed.types import FedState, RoundMetrics
from fedmedjax.store import files

# More steps in a round than any site takes: the arrays of a stranger's number would fill memory.
_MOST_STEPS = 2**20


class Described(NamedTuple):
  """What a site has said of itself before it takes part."""

  size: float               # n_k; 1 where it does not tell
  tasks: tuple[str, ...]    # of the validation notes on which it judges
  data: str                 # a number that it drew for these notes
  model: str
  withheld: tuple[str, ...]
  largest_update_norm: float = 0.0
  privacy_required: bool = False


class Update(NamedTuple):
  """What a site has sent, read and checked."""

  sent: Any             # [*p]
  control: Any          # [*p], or ()
  steps: int
  weight: float
  train_loss: float | None  # None = not told
  last_loss: float | None
  local_norm: float
  start_loss: float
  examples: int
  tokens: int


class Rounds:
  """Plays rounds, given what is known of the sites."""

  def __init__(
    self, study: ServerStudy, conversation: Conversation, sampler: Sampler,
    cohorts: list[list[int]], warn: Callable[[str], None],
  ):
    """
    Args:
      study: of the server.
      conversation: with the sites.
      sampler: of the study, given the sites' sizes.
      cohorts: the sites of each round, as they are drawn.
      warn: is told who is left out, and why.
    """
    self._study, self._conversation, self._sampler = study, conversation, sampler
    self._cohorts, self._warn = cohorts, warn
    self._half = apart.server_half(study.agreed.parts)
    self._asks_start = names_argument(study.agreed.parts.aggregator.update, 'start_loss')

  def play(
    self, number: int, state: FedState, lines: Sequence[dict],
    described: Mapping[int, Described], absent: Mapping[int, str],
  ) -> tuple[FedState, dict]:
    """Round `number` (from 0) -> (state, its line of metrics.jsonl as JSON values).

    Args:
      number: of the round, `lines` are those before it.
      state: before the round.
      lines: of the rounds before.
      described: of the sites that take part.
      absent: why the others do not.
    """
    begun, cohort = time.monotonic(), self._sampler.draw(number)
    here = [int(site) for site in cohort.sites[cohort.present]]
    missing = {site: absent.get(site, 'has not been heard of') for site in here
               if site not in described}
    updates: dict[int, Update] = {}
    asked = [site for site in here if site in described]
    for site, answer in self._asked(number, state, lines, asked).items():
      read = answer if isinstance(answer, Missing) else self._read(
        answer, number, site, int(state.round), described[site])
      if isinstance(read, Missing):
        missing[site] = read.reason
      else:
        updates[site] = read
    for site, reason in missing.items():
      self._warn(f'round {number + 1}: site {self._study.agreed.names[site]} is left out, it '
                 f'{reason}')
    if not updates:
      return state, self._line(number, cohort, here, updates, missing, begun) | files.plain({
        'skipped': True, 'weights': [0.0] * len(here)})
    new, metrics = self._aggregated(number, state, cohort, updates, described)
    line = self._line(number, cohort, here, updates, missing, begun)
    turn = self._participation(cohort, updates, line['seconds'])
    line |= metrics_line(self._study, Execution(1, ''), turn, metrics)
    for key in ('train_loss', 'last_loss'):
      line[key] = [getattr(updates[site], key) if site in updates else None for site in here]
    try:
      warnings = check_round(self._study, line, turn, metrics, lines)
    except RuntimeError as error:
      # Updates that cancel each other, or false norms, may come from a site: no end of the study.
      self._warn(f'{error}; the adapter stays as it is')
      return state, files.plain(line | {'skipped': True, 'weights': [0.0] * len(here)})
    for warning in warnings:
      self._warn(warning)
    return new, files.plain(line)

  def _asked(
    self, number: int, state: FedState, lines: Sequence[dict], sites: Sequence[int]
  ) -> dict[int, Message | Missing]:
    """The answers to the round's messages; who has lost what it was sent is sent it all again."""
    travelling = tuple(self._study.agreed.wire.travelling(int(state.round)))
    answers = self._conversation.ask('local_round', number, {
      site: self._question(number, state, lines, site) for site in sites}, travelling)
    again = {site: self._question(number, state, lines, site, whole=True)
             for site, answer in answers.items() if isinstance(answer, Missing) and answer.lacks}
    return answers | self._conversation.ask('local_round', number, again, travelling)

  def _question(
    self, number: int, state: FedState, lines: Sequence[dict], site: int, whole: bool = False
  ) -> Question:
    """What a site is sent: what it lacks of the server's values."""
    w, changed = self._study.agreed.wire, int(state.round)
    name = self._study.agreed.names[site]
    skipped = skipped_rounds(lines)
    held = NEVER if whole else max(
      (line['round'] - 1 for line in lines if _sent(line, name)), default=NEVER)
    before = None if held == NEVER else held - sum(past < held for past in skipped)
    key = jax.random.fold_in(jax.random.key(self._study.agreed.seed), number)
    arrays = wire.plain_arrays(w, 'adapter', state.adapter, w.lacking(changed, before), site)
    if w.controlled:
      arrays |= wire.plain_arrays(w, 'control', state.ctrl, w.travelling(changed), site)
    arrays |= columns_between(w, state.folded, before or 0, changed) | {
      wire.name_of('header', 'round'): np.asarray(number, np.int32),
      wire.name_of('header', 'key'): np.asarray(jax.random.key_data(key))}
    return Question(
      {'cohorts': self._cohorts, 'changed': changed, 'held': held,
       'used': last_used(lines, name)}, arrays)

  def _read(
    self, message: Message, number: int, site: int, changed: int, known: Described
  ) -> Update | Missing:
    """A site's update, or why it cannot be used."""
    w = self._study.agreed.wire

    def told(name: str, kind: type = np.float32):
      array = message.tensors.get(wire.name_of('header', name))
      if array is not None and (array.shape != () or array.dtype != kind):
        raise ValueError(f'header/{name} is {array.dtype}{list(array.shape)}')
      return None if array is None else array.item()

    travelling = w.travelling(changed)
    kinds = ('adapter', 'control') if w.controlled else ('adapter',)
    agreed = {(kind, path) for kind in kinds for path in travelling}
    for key in map(wire.key_of, message.tensors):
      if key[0] != 'header' and key not in agreed:
        return Missing(f'sent what was not agreed: {"/".join(key)[:200]}')
    try:
      sent = wire.read_coded(w, message.tensors, travelling, site)
      control = wire.read_plain(
        w, 'control', message.tensors, travelling, site) if w.controlled else ()
      steps, weight = told('steps', np.int32), told('weight')
      losses = told('train_loss'), told('last_loss')
      norm, start = told('local_norm'), told('start_loss')
      about = told('round', np.int32), told('site', np.int32)
    except (ValueError, TypeError) as error:
      return Missing(f'sent what was not agreed: {str(error).splitlines()[0][:200]}')
    if about != (number, site):
      return Missing('sent the update of another round or site')
    if steps is None or not 0 < steps <= _MOST_STEPS:
      return Missing(f'says that it took {steps} steps')
    if weight is not None and weight != known.size:
      return Missing(f'counts {weight:g} examples, {known.size:g} when it began')
    if norm is None:
      norm = float(np.sqrt(sum(float(np.square(leaf, dtype=np.float64).sum())
                               for leaf in jax.tree.leaves(sent))))
    # NaN is left to the quarantine.
    if norm <= 0 or travelling and not any(np.any(leaf) for leaf in jax.tree.leaves(sent)):
      return Missing('has learnt nothing: its update is zero')
    if self._asks_start and not (start is not None and np.isfinite(start)):
      return Missing('sent no finite start_loss')
    examples, tokens = (
      int(value) if type(value) is int and 0 <= value < 2**53 else 0
      for value in (message.fields.get('examples'), message.fields.get('tokens')))
    return Update(
      sent, control, steps, known.size, *losses, norm, np.nan if start is None else start, examples,
      tokens)

  def _aggregated(
    self, number: int, state: FedState, cohort, updates: Mapping[int, Update],
    described: Mapping[int, Described],
  ) -> tuple[FedState, RoundMetrics]:
    """The state after the round, and its metrics on the host."""
    study = self._study
    answers = self._stacked(cohort, updates)
    judges = Judges(
      study.agreed, self._conversation, state, number, self._cohorts, cohort.sites,
      sorted(updates), {site: one.tasks for site, one in described.items()}, self._warn)
    key = jax.random.fold_in(jax.random.key(study.agreed.seed), number)
    while True:
      try:
        state, metrics = self._half(state, answers, cohort.sites, judges.queries, key)
      except FewerJudges:
        continue
      return state, jax.device_get(metrics)

  def _stacked(self, cohort, updates: Mapping[int, Update]) -> apart.Answers:
    """What has arrived as arrays over the cohort [C, ...], zeros for the others."""
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self._study.adapter)
    sites = [int(site) for site in cohort.sites]

    def over(read: Callable[[Update], Any], otherwise: Any) -> Any:
      rows = [read(updates[site]) if site in updates else otherwise for site in sites]
      return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

    steps = over(lambda one: one.steps, 0)
    mask = np.arange(steps.max())[None] < steps[:, None]
    losses = np.full(mask.shape, np.nan, np.float32)
    for row, site in enumerate(sites):
      if site in updates:
        one = updates[site]
        # Whoever keeps its losses to itself is judged by its norm alone.
        mean = 0.0 if one.train_loss is None else one.train_loss
        losses[row, :one.steps] = mean
        losses[row, one.steps - 1] = mean if one.last_loss is None else one.last_loss
    controlled = self._study.agreed.wire.controlled
    return apart.Answers(
      over(lambda one: one.sent, zeros), over(lambda one: one.control, zeros) if controlled else (),
      losses, mask, self._weights(cohort, updates),
      over(lambda one: np.float32(one.local_norm), np.float32(np.nan)),
      over(lambda one: np.float32(one.start_loss), np.float32(0)))

  def _weights(self, cohort, updates: Mapping[int, Update]) -> np.ndarray:
    """f32[C], n_k corrected for uneven sampling, as in `participation.round_participation`."""
    sites = cohort.sites
    sizes = np.asarray([updates[site].weight if site in updates else 0.0
                        for site in sites.tolist()], np.float32)
    correction = self._sampler.inclusion.mean() / self._sampler.inclusion[sites]
    return (sizes * correction).astype(np.float32)

  def _participation(self, cohort, updates: Mapping[int, Update], seconds: float) -> Participation:
    steps = np.asarray([updates[site].steps if site in updates else 0
                        for site in cohort.sites.tolist()], np.int32)
    return Participation(
      cohort, steps, self._weights(cohort, updates), np.where(cohort.present, seconds, 0.0))

  def _line(
    self, number: int, cohort, here: list[int], updates: Mapping[int, Update],
    missing: Mapping[int, str], begun: float,
  ) -> dict:
    """The part of a round's line that is known without the aggregate."""
    names, seconds = self._study.agreed.names, time.monotonic() - begun
    down, up = ([sum(getattr(one.row, way) for one in self._conversation.traffic
                     if one.row.site == names[site]) for site in here] for way in ('down', 'up'))
    steps = [updates[site].steps if site in updates else 0 for site in here]
    return {
      'round': number + 1, 'sites': [names[site] for site in here], 'steps': steps,
      'local_steps': sum(steps), 'examples': sum(one.examples for one in updates.values()),
      'tokens': sum(one.tokens for one in updates.values()),
      'bytes_up': sum(up), 'bytes_down': sum(down), 'site_bytes_up': up, 'site_bytes_down': down,
      'site_seconds': [seconds] * len(here), 'simulated_seconds': seconds, 'seconds': seconds,
      'quarantined': [], 'absent': {names[site]: reason for site, reason in missing.items()}}


def last_used(lines: Sequence[dict], name: str) -> int:
  """The last round, from 0, in which the update of a site was used; NEVER = none."""
  return max((
    line['round'] - 1 for line in lines if _sent(line, name) and not line.get('skipped')
    and name not in line['quarantined']), default=NEVER)


def _sent(line: dict, name: str) -> bool:
  """Whether an update of the site has come in the round of this line."""
  return name in line['sites'] and line['steps'][line['sites'].index(name)] > 0

"""Losses on the sites' own validation notes, asked for when the aggregator calls for them."""

import hashlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax.deploy.conversation import Conversation, Missing, Question
from fedmedjax.deploy.keeping import NEVER
from fedmedjax.experiment.deployed import Agreed
from fedmedjax.fed import wire
from fedmedjax.fed.apart import Queries
from fedmedjax.fed.types import Array, FedState, Tree


class FewerJudges(Exception):
  """Some judges did not answer; the aggregator has to begin again without them."""


class Judges:
  """The sites that hold validation notes, in one round."""

  def __init__(
    self, agreed: Agreed, conversation: Conversation, state: FedState, number: int,
    cohorts: list, cohort: np.ndarray, arrived: list[int], tasks: Mapping[int, tuple[str, ...]],
    warn: Callable[[str], None],
  ):
    """
    Args:
      agreed, conversation: of the study.
      state: before the round.
      number: of the round, from 0.
      cohorts: the sites of each round.
      cohort: i32[C], the order in which adapters [C, *p] are asked about.
      arrived: numbers of the sites whose update has come.
      tasks: {site: the tasks of its validation notes}, of those that judge.
      warn: is told who is missing.
    """
    self._agreed, self._conversation, self._state = agreed, conversation, state
    self._number, self._cohorts, self._cohort = number, cohorts, cohort
    self._arrived, self._warn = arrived, warn
    self._peers = 'peers' in agreed.parts.aggregator.needs
    names = agreed.names
    # As in the simulation: groups stand in the order of (site's name, task).
    self._holders = sorted(
      (site for site, own in tasks.items() if own and (not self._peers or site in arrived)),
      key=lambda site: names[site])
    self._tasks = tasks
    self._answers: dict[tuple, np.ndarray] = {}

  @property
  def queries(self) -> Queries:
    """What the aggregator is given."""
    return Queries(
      lambda adapters: jnp.asarray(self._asked('loss', adapters)).mean(axis=1),
      lambda adapters: jnp.asarray(
        self._asked('peer' if self._peers else 'answer', adapters)),
      self._slopes, lambda: jnp.asarray(self._group_site, jnp.int32))

  @property
  def _group_site(self) -> list[int]:
    return [site for site in self._holders for _ in (
      self._tasks[site][:1] if self._peers else self._tasks[site])]

  def _asked(self, want: str, adapters: Tree) -> np.ndarray:
    """adapters [Q, *p] -> f32[Q, G]."""
    adapters = jax.device_get(adapters)
    count = len(jax.tree.leaves(adapters)[0])
    rows = [jax.tree.map(lambda x, row=row: x[row], adapters) for row in range(count)]
    # The same adapter is sent once, such as the anchor in place of those that are missing.
    digests = [_digest(row) for row in rows]
    first = {one: row for row, one in reversed(list(enumerate(digests)))}
    places: dict[int, list[int]] = {}
    for site in self._holders:
      if self._peers:
        places[site] = [row for row, other in enumerate(self._cohort)
                        if other in self._arrived and other != site]
      else:
        places[site] = sorted(first.values())
    losses = self._exchanged(want, ''.join(digests), {
      site: Question(
        self._fields(site, want, len(rows_)),
        self._arrays(site, {str(k): rows[row] for k, row in enumerate(rows_)}))
      for site, rows_ in places.items() if rows_}, {
        site: len(rows_) for site, rows_ in places.items()})
    full = []
    for site in self._holders:
      own = np.zeros((count, 1 if self._peers else len(self._tasks[site])), np.float32)
      if places[site]:
        known = losses[site].reshape(len(places[site]), -1)
        for k, row in enumerate(places[site]):
          own[row] = known[k]
        if not self._peers:
          own = own[[first[one] for one in digests]]
      full.append(own)
    # Whom nobody judges has no loss.
    return np.concatenate(full, axis=1) if full else np.full(
      (count, 0 if self._peers else 1), np.nan, np.float32)

  def _slopes(self, updates: Tree, step: Tree) -> Array:
    """updates [C, *p], step [*p] -> f32[C, G]."""
    updates = jax.device_get(updates)
    place = jax.device_get(jax.tree.map(jnp.add, self._state.adapter, step))
    count = len(jax.tree.leaves(updates)[0])
    adapters = {'place': place} | {
      str(row): jax.tree.map(lambda x, row=row: x[row], updates) for row in range(count)}
    losses = self._exchanged('slopes', ''.join(map(_digest, adapters.values())), {
      site: Question(self._fields(site, 'slopes', count), self._arrays(site, adapters, whole=True))
      for site in self._holders}, dict.fromkeys(self._holders, count))
    if not losses:
      return jnp.full((count, 1), jnp.nan)
    return jnp.asarray(np.concatenate([losses[site] for site in self._holders], axis=1))

  def _fields(self, site: int, want: str, count: int) -> dict:
    return {
      'cohorts': self._cohorts, 'changed': int(self._state.round), 'want': want, 'count': count,
      'held': self._number if site in self._arrived else NEVER}

  def _arrays(self, site: int, adapters: Mapping[str, Tree], whole: bool = False) -> wire.Arrays:
    """Adapters [*p] for a judge: what it lacks of each; all that is shared, if it has no anchor."""
    w, changed = self._agreed.wire, int(self._state.round)
    holds = site in self._arrived
    paths = w.travelling(changed) if holds and not whole and not w.ranks else w.shared
    kind, arrays = 'judged' if self._peers else 'query', {}
    for part, adapter in adapters.items():
      arrays |= wire.plain_arrays(w._replace(ranks=()), kind, adapter, paths, site, part)
    return arrays | ({} if holds else columns_between(w, self._state.folded, 0, changed))

  def _exchanged(
    self, want: str, about: str, questions: Mapping[int, Question], counts: Mapping[int, int]
  ) -> dict[int, np.ndarray]:
    """The answers of all judges; FewerJudges where one is missing, and then it is left out."""
    new = {site: one for site, one in questions.items()
           if (want, about, site) not in self._answers}
    missing = False
    for site, answer in self._conversation.ask('validate', self._number, new).items():
      losses = self._losses(want, answer, counts[site], len(self._tasks[site]))
      if isinstance(losses, Missing):
        self._warn(f'round {self._number + 1}: site {self._agreed.names[site]} judges nobody, it '
                   f'{losses.reason}')
        self._holders.remove(site)
        missing = True
      else:
        self._answers[want, about, site] = losses
    if missing:
      raise FewerJudges
    return {site: self._answers[want, about, site] for site in questions}

  def _losses(self, want: str, answer, count: int, groups: int) -> np.ndarray | Missing:
    if isinstance(answer, Missing):
      return answer
    kind, tensor, shape = ('header', 'peer_loss', (count,)) if want == 'peer' else (
      'query', 'losses', (count, groups))
    losses = answer.tensors.get(wire.name_of(kind, tensor))
    if losses is None or losses.shape != shape or losses.dtype != np.float32:
      return Missing(f'sent no {tensor} of shape {list(shape)}')
    # A single adapter may well be beyond all numbers; a judge of whom all are is no judge.
    return losses if np.isfinite(losses).any() else Missing('found no finite loss')


def columns_between(w: wire.Wire, folded: Tree, since: int, changed: int) -> wire.Arrays:
  """The columns that were added to the base in rounds `since` to `changed`, as arrays f32[n]."""
  first, last = w.columns * since, w.columns * changed
  if first >= last:
    return {}
  arrays = {}
  for path, leaf in wire.by_path(folded):
    axis = -1 if path.endswith('/a') else -2
    part = np.take(np.asarray(leaf), range(first, last), axis=axis)
    arrays[wire.name_of('residual', path)] = part.reshape(-1).astype(np.float32)
  return arrays


def _digest(adapter: Tree) -> str:
  content = hashlib.sha256()
  for leaf in jax.tree.leaves(adapter):
    content.update(np.ascontiguousarray(leaf).data)
  return content.hexdigest()

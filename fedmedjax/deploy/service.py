"""A site's answers to the server's messages: its training of a round, and losses on its own notes.

The fields and arrays of each kind of message are these; arrays are named as in `fed/wire.py`.
Every answer has the field data, a number drawn for these very notes.
- describe: nothing. Answer: fields size, tasks, model, withheld, largest_update_norm,
  privacy_required.
- local_round: fields cohorts (the sites of each round), changed (rounds so far that changed
  something), held (the round whose adapter the site was sent last, -1 = none), used (the last round
  whose update of this site was used); arrays of the ledger's way down. Answer: of its way up,
  fields examples and tokens.
- validate: fields cohorts, changed, held, want ('loss', 'answer', 'peer' or 'slopes'), count;
  arrays 'judged/TENSOR:NUMBER' or 'query/TENSOR:NUMBER'. Answer: the header's peer_loss f32[count],
  or 'query/losses' f32[count, G].
- finish: fields changed, used; arrays of all that is shared. The site writes its adapter.
- score: nothing. The site scores that adapter on its own test notes, and writes its report. Answer:
  fields of `told_scores.py`.
What cannot be answered has the answer 'error' with fields reason and code; the reason quotes the
message, never notes or files.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax.data import schedule as schedules
from fedmedjax.data.schedule import Schedule
from fedmedjax.deploy import messages
from fedmedjax.deploy.keeping import NEVER, Keeping
from fedmedjax.deploy.memory import REFUSED, Memory, Unanswerable, array_of, view, whole
from fedmedjax.deploy.messages import Fault, Message
from fedmedjax.deploy.policy import Policy
from fedmedjax.deploy.scoring import SCORED, Scored
from fedmedjax.deploy.telling import told_of_round, withheld
from fedmedjax.deploy.told_scores import told_scores
from fedmedjax.experiment.deployed import Agreed, SiteStudy
from fedmedjax.experiment.undeployed import EXAMPLES
from fedmedjax.fed import apart, wire
from fedmedjax.fed.round import own_adapter
from fedmedjax.fed.types import SiteState, Validation
from fedmedjax.runtime.phrases import many
from fedmedjax.types import InputError


class _Planned(NamedTuple):
  """What the site computes with, once the cohorts of all rounds are known."""

  cohorts: list
  schedule: Schedule
  validation: Validation | None


class SiteService:
  """Answers messages, one at a time; `handle` is all that a transport needs."""

  def __init__(
    self, study: SiteStudy, kept: Keeping, policy: Policy, model: str,
    scored: Callable[[], Scored], say: Callable[[str], None] = lambda line: None,
  ):
    """
    Args:
      study: of this site.
      kept: its folder.
      policy: what may leave.
      model: digest of the base model's files, which all sites have to share.
      scored: scores the final adapter on the site's test notes, see `scoring.score_site`.
      say: is told a line for every message.
    """
    self.study, self.policy, self.model = study, policy, model
    self._kept, self._say, self._scored = kept, say, scored
    self._planned: _Planned | None = None
    self._compiled: dict[Any, Callable] = {}
    self._memory = Memory(study, kept)

  @property
  def limit(self) -> int:
    """Most bytes of a message: an adapter and a control variate, or those that are judged."""
    return message_limit(self.study.agreed)

  def handle(self, data: bytes) -> bytes:
    """message -> answer; whatever comes, nothing is raised but for a stop or a lack of memory."""
    message = messages.decode(data, self.limit)
    if isinstance(message, Fault):
      return self._error(Message('', self.study.agreed.identity, '', NEVER, ''), message.reason)
    kinds = {'describe': self._describe, 'local_round': self._local_round,
             'validate': self._validate, 'finish': self._finish, 'score': self._score}
    try:
      self._check_addressed(message)
      if message.kind not in kinds:
        raise Unanswerable(REFUSED, f'a message of an unknown kind {message.kind[:40]!r}')
      if saved := self._kept.answer(data):
        self._say(f'round {message.round + 1}: asked again, answered as before')
        return saved
      return kinds[message.kind](message, data)
    except Unanswerable as error:
      return self._error(message, error.args[1], error.args[0])
    except (InputError, OSError, RuntimeError) as error:
      # The line may name files or notes of the site, which stay here.
      self._say((str(error).splitlines() or [type(error).__name__])[0])
      return self._error(message, 'failed, its own output says why')
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
      line = (str(error).splitlines() or [type(error).__name__])[0]
      return self._error(message, f'its message cannot be used: {line[:300]}')

  def _check_addressed(self, message: Message) -> None:
    if message.study != self.study.agreed.identity:
      raise Unanswerable(
        REFUSED, 'a message of another study: the configurations of server and site differ in '
        'what they have to agree in (docs/deployment.md)')
    if message.site != self._name:
      raise Unanswerable(
        REFUSED, f'a message to site {message.site[:40]!r}, this is {self._name!r}')

  @property
  def _name(self) -> str:
    return self.study.agreed.names[self.study.index]

  def _error(self, message: Message, reason: str, code: str = REFUSED) -> bytes:
    self._say(f'not answered: {reason}')
    try:
      self._kept.record({'kind': 'error', 'round': message.round + 1, 'reason': reason})
    except OSError as error:
      self._say(f'the manifest cannot be written: {error}')
    return messages.encode(Message(
      'error', self.study.agreed.identity, self._name, message.round, message.nonce,
      {'reason': reason, 'code': code}))

  def _answered(self, message: Message, fields: dict, arrays: wire.Arrays, said: dict) -> bytes:
    """The answer, after what is in it was recorded; `said` are its numbers, for the manifest."""
    fields = fields | {'data': self._kept.data}
    answer = messages.encode(message._replace(fields=fields, tensors=arrays))
    self._kept.record({
      'kind': message.kind, **fields, **said, 'round': message.round + 1,
      'tensors': [{'name': name, 'shape': list(array.shape), 'dtype': str(array.dtype),
                   'bytes': array.nbytes} for name, array in arrays.items()],
      'bytes': len(answer), 'received': message.payload})
    return answer

  def _describe(self, message: Message, data: bytes) -> bytes:
    policy, count = self.policy, int(self.study.size)
    kept = withheld(policy, self.study)
    return self._answered(message, {
      'size': None if EXAMPLES in kept else count, 'tasks': list(self._tasks), 'model': self.model,
      'withheld': list(kept),
      'largest_update_norm': float(policy.largest_update_norm),
      'privacy_required': policy.privacy_required}, {}, {})

  @property
  def _tasks(self) -> tuple[str, ...]:
    """The tasks of validation notes that this site judges on: of enough examples."""
    if not self.policy.validation_losses:
      return ()
    return tuple(task for task, count in zip(
      self.study.groups, self.study.answers, strict=True) if count >= self.policy.smallest_count)

  def _local_round(self, message: Message, data: bytes) -> bytes:
    study, fields = self.study, message.fields
    index, agreed = study.index, study.agreed
    planned = self._plan(fields)
    if not 0 <= message.round < len(planned.cohorts) or index not in planned.cohorts[message.round]:
      raise Unanswerable(REFUSED, f'it is not drawn in round {message.round + 1}')
    changed, used = whole(fields, 'changed'), whole(fields, 'used')
    before = self._memory.state_of(used)
    anchor = self._memory.received(message, changed)
    count = len(planned.schedule.plan[message.round][index])
    batches, mask = schedules.round_arrays(planned.schedule, message.round, [index], [count])
    key = jax.random.wrap_key_data(
      jnp.asarray(array_of(message, 'header', 'key', (2,), np.uint32)))
    self._say(f'round {message.round + 1}: trains {many(count, "step")}')
    learnt, after = self._trained(
      planned.schedule, view(anchor, changed), study.trainable.base, before, batches, mask,
      np.int32(index), key)
    learnt = jax.device_get(learnt)
    bound = self.policy.largest_update_norm
    # Rounding may lengthen what was clipped to the bound.
    if bound and not float(learnt.sent_norm) <= bound * (1 + 1e-4):
      raise Unanswerable(REFUSED, f'its update is longer than its policy allows ({bound:g})')
    travelling = agreed.wire.travelling(changed)
    arrays = wire.coded_arrays(agreed.wire, learnt.message, travelling, index)
    if agreed.wire.controlled:
      arrays |= wire.plain_arrays(agreed.wire, 'control', learnt.control, travelling, index)
    told = told_of_round(self.policy, study, planned.schedule, message.round, count, learnt)
    answer = self._answered(message, told.counts, arrays | told.arrays, told.numbers)
    self._memory.keep(data, message.round, changed, used, anchor, after, answer)
    self._say(f'round {message.round + 1}: {many(count, "step")}, {many(len(answer), "byte")} sent')
    return answer

  def _trained(self, schedule: Schedule, *inputs) -> tuple[apart.Learnt, SiteState]:
    """The compiled half of the round; where memory is short, with less kept of each step."""
    remats = self.study.remats
    for place, remat in enumerate(remats):
      if remat not in self._compiled:
        self._compiled[remat] = self.study.half(remat, schedule)
      try:
        return jax.block_until_ready(self._compiled[remat](*inputs))
      except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error) or place + 1 == len(remats):
          raise
    raise RuntimeError('no way of computing a step is left')

  def _validate(self, message: Message, data: bytes) -> bytes:
    study, fields, want = self.study, message.fields, message.fields.get('want')
    w, index = study.agreed.wire, study.index
    planned, count = self._plan(fields), whole(fields, 'count')
    if planned.validation is None or not self._tasks:
      raise Unanswerable(
        REFUSED, 'it judges nobody: it has no validation notes, or its policy says so')
    changed = whole(fields, 'changed')
    anchor = self._memory.anchor_of(message, changed) if whole(fields, 'held') != NEVER else (
      self._memory.blank._replace(folded=self._memory.columns(message, changed)))
    kind = 'judged' if want == 'peer' else 'query'
    complete = fields.get('held') == NEVER or want == 'slopes'
    paths = w.shared if complete or w.ranks else w.travelling(changed)

    def adapter(part: str):
      into = None if complete else anchor.adapter
      return jax.tree.map(jnp.asarray, wire.read_plain(
        w._replace(ranks=()), kind, message.tensors, paths, index, part, into))

    given = anchor.folded, study.trainable.base, planned.validation
    if want == 'slopes':
      updates = jax.tree.map(lambda *x: jnp.stack(x), *(adapter(str(k)) for k in range(count)))
      losses = self._once('slopes', planned.schedule, apart.slopes)(
        adapter('place'), updates, *given)
    elif want in ('loss', 'answer', 'peer'):
      judged = self._once(
        ('judge', want == 'loss'), planned.schedule,
        lambda loss: apart.judge(loss, per_answer=want != 'loss'))
      losses = np.stack([judged(adapter(str(number)), *given) for number in range(count)])
    else:
      raise Unanswerable(REFUSED, f'it is asked for {str(want)[:40]!r}, which it does not know')
    shown = [self.study.groups.index(task) for task in self._tasks]
    losses = np.asarray(losses, np.float32)[:, shown]
    name = wire.name_of('query', 'losses')
    if want == 'peer':
      name, losses = wire.name_of('header', 'peer_loss'), losses.mean(axis=1)
    self._say(f'round {message.round + 1}: {many(count, "adapter")} judged')
    return self._answered(message, {}, {name: losses}, {'losses': losses})

  def _once(self, key: Any, schedule: Schedule, build: Callable) -> Callable:
    """A compiled function of the loss, built once; memory is spared as far as can be."""
    if key not in self._compiled:
      self._compiled[key] = build(self.study.loss(self.study.remats[-1], schedule))
    return self._compiled[key]

  def _finish(self, message: Message, data: bytes) -> bytes:
    w, changed = self.study.agreed.wire.whole_ranks, whole(message.fields, 'changed')
    adapter = wire.read_plain(
      w, 'adapter', message.tensors, w.shared, self.study.index)
    state = self._memory.state_of(whole(message.fields, 'used'))
    folded = self._memory.columns(message, changed)
    own = own_adapter(
      self.study.agreed.parts.sharing, jax.tree.map(jnp.asarray, adapter),
      jax.tree.map(lambda x: jnp.asarray(x)[0], state.adapter), folded)
    folder = self._kept.folder / self.study.trainable.folder
    own = jax.device_get(own)
    self.study.trainable.save(own, Path(folder))
    self._kept.keep_final(own)
    self._say(f'finished: the adapter is in {folder}')
    return self._answered(message, {}, {}, {})

  def _score(self, message: Message, data: bytes) -> bytes:
    return self._answered(message, told_scores(self.policy, self._name, self.score()), {}, {})

  def score(self) -> Scored:
    """Scores the final adapter here; nothing leaves. Raises as `scoring.score_site`."""
    scored = self._scored()
    self._say(f'scored on {scored.examples} test examples: {self._kept.folder / SCORED}')
    return scored

  def _plan(self, fields) -> _Planned:
    """The steps and arrays of the cohorts that the server has drawn; planned once."""
    cohorts = fields.get('cohorts')
    names = range(len(self.study.agreed.names))
    if not isinstance(cohorts, list) or not cohorts or not all(
        isinstance(row, list) and all(type(site) is int and site in names for site in row)
        for row in cohorts):
      raise Unanswerable(REFUSED, 'its message does not say which sites meet in each round')
    if self._planned is None or self._planned.cohorts != cohorts:
      self._planned = _Planned(cohorts, *self.study.planned(cohorts))
      self._compiled.clear()
    return self._planned


def message_limit(agreed: Agreed) -> int:
  """Most bytes of arrays in a message: an adapter and a control variate, all that was added to the
  base, and, where sites judge, the adapters of a cohort."""
  folded = sum(4 * leaf.size for leaf in jax.tree.leaves(
    agreed.parts.aggregator.fold(agreed.wire.adapter)))
  return (2 + agreed.judged) * wire.most_bytes(agreed.wire) + folded + 2**16

"""A study between hospitals from beginning to end, as its server runs it, over any transport."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax import report
from fedmedjax.deploy.conversation import HEAD, Conversation, Missing, Question, ledger_lines
from fedmedjax.deploy.judges import columns_between
from fedmedjax.deploy.keeping import NEVER
from fedmedjax.deploy.messages import Message, number
from fedmedjax.deploy.rounds import Described, Rounds, last_used
from fedmedjax.deploy.summary import summary_of
from fedmedjax.deploy.told_scores import Heard, heard_scores
from fedmedjax.deploy.transport import Transport
from fedmedjax.experiment import communication
from fedmedjax.experiment.deployed import ServerStudy
from fedmedjax.experiment.round_log import round_sentence
from fedmedjax.fed import apart, wire
from fedmedjax.fed.round import own_adapter
from fedmedjax.fed.sharing import shares_all
from fedmedjax.fed.types import FedState
from fedmedjax.runtime import signals
from fedmedjax.runtime.phrases import many
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store import checkpoint, files, lock
from fedmedjax.types import InputError

CHECKPOINTS, METRICS, LEDGER, DESCRIBED = (
  'checkpoints', 'metrics.jsonl', 'ledger.csv', 'described.json')
# More examples than any site has.
_MOST_EXAMPLES = 2**31
# Seconds in which a site that was not there says what it is, before each later round.
_NEWCOMER = 120.0


class Finished(NamedTuple):
  """The end of a study: its last state, the lines of all rounds, and summary.json."""

  state: FedState
  lines: list[dict]
  summary: dict[str, Any]


def run_study(
  study: ServerStudy, settings: Mapping[str, Any], model: str, transport: Transport,
  workdir: Path, reporter: Reporter, deadline: float, harmless: tuple[str, ...],
) -> Finished:
  """Runs the study, or goes on with it after the last round that is on disk.

  Args:
    study: of the server.
    settings: the flat configuration, as JSON values.
    model: digest of the base model, which sites have to share; '' = that of the first one.
    transport: to the sites.
    workdir: folder of the run, made when absent.
    reporter: is told what happens.
    deadline: seconds that every wait for the sites lasts at most.
    harmless: keys in which a run may differ from its continuation.

  Raises:
    InputError: a folder of another run, or a site whose policy does not allow the method.
    RuntimeError: no site could be used in config.fed.max_bad_rounds rounds, or the disk is full.
  """
  files.check_workdir(workdir, dict(settings), harmless)
  held = checkpoint.latest_round(workdir / CHECKPOINTS)
  if held > study.options.rounds:
    raise InputError(
      f'--workdir={workdir}: holds {many(held, "round")}, '
      f'config.fed.rounds={study.options.rounds}; ask for as many or more')
  workdir.mkdir(parents=True, exist_ok=True)
  with lock.locked(workdir, reporter.warn):
    files.claim(workdir, dict(settings))
    return _Study(study, model, transport, workdir, reporter, deadline).run()


class _Study:
  """A study while it runs."""

  def __init__(self, study, model, transport, workdir, reporter, deadline):
    self._study, self._model, self._workdir, self._reporter = study, model, workdir, reporter
    self._sites: dict[int, Described] = _recorded(workdir, study.agreed.names)
    names = study.agreed.names
    self._talk = Conversation(
      study.agreed, transport, deadline,
      lambda name: self._sites[names.index(name)].data if names.index(name) in self._sites
      else None)
    self._absent: dict[int, str] = {}

  def run(self) -> Finished:
    begun, study, names = time.monotonic(), self._study, self._study.agreed.names
    self._describe([*range(len(names))], begins=True)
    sampler = study.sampler(self._sizes())
    cohorts = communication.cohorts(sampler, study.options.rounds)
    play = Rounds(study, self._talk, sampler, cohorts, self._reporter.warn).play
    state, lines = self._restored()
    if lines:
      self._reporter.say(f'resuming after round {len(lines)}')
    while len(lines) < study.options.rounds:
      _check_streak(study, lines)
      self._describe([site for site in cohorts[len(lines)] if site not in self._sites])
      self._talk.traffic.clear()
      # A stop while the server waits costs nothing: sites answer again what they have answered.
      state, line = play(len(lines), state, lines, self._sites, self._absent)
      lines = [*lines, line]
      with signals.deferred():
        self._save(state, lines)
      self._reporter.say(_sentence(line, study))
    _check_streak(study, lines)
    summary = self._finish(state, lines, begun)
    return Finished(state, lines, summary)

  def _describe(self, sites: list[int], begins: bool = False) -> None:
    """Hears what sites say of themselves; who does not, or may not, take part is noted."""
    if not sites:
      return
    names = self._study.agreed.names
    for site, answer in self._talk.ask(
        'describe', NEVER, dict.fromkeys(sites, Question()),
        longest=None if begins else _NEWCOMER).items():
      told = answer if isinstance(answer, Missing) else _described(answer)
      if isinstance(told, Described):
        if refused := self._study.objection(
            names[site], told.withheld, told.largest_update_norm, told.privacy_required):
          if begins:
            raise InputError(refused)
          told = Missing(refused)
        elif told.model != (self._model or told.model):
          told = Missing('has another base model than the server')
      if isinstance(told, Missing):
        self._absent[site] = told.reason
        # Who is known may come back in its next round; with other notes it may not.
        if 'other notes' in told.reason:
          self._reporter.warn(f'site {names[site]} {told.reason}')
        continue
      self._model = self._model or told.model
      self._sites[site] = told
      self._absent.pop(site, None)
    if begins:
      self._check_begins()
    files.write_json(self._workdir / DESCRIBED, {
      names[site]: files.plain(one._asdict()) for site, one in sorted(self._sites.items())})

  def _check_begins(self) -> None:
    names = self._study.agreed.names
    silent = [f'site {names[site]} {reason}' for site, reason in sorted(self._absent.items())
              if site not in self._sites]
    for line in silent:
      self._reporter.warn(line)
    if not self._sites:
      raise RuntimeError('no site takes part: ' + '; '.join(silent))
    if silent and self._study.samples_by_size:
      raise RuntimeError(
        "config.fed.sampler='size' draws sites by their number of examples, and not all have told "
        'theirs: ' + '; '.join(silent))
    if self._study.asks_losses and not any(one.tasks for one in self._sites.values()):
      lacking = (
        f'config.fed.signal={self._study.options.signal!r} asks for losses on validation notes, '
        "which no site tells: it takes as many validation examples as the policy's smallest_count; "
        'raise config.data.validation_examples at the sites, or lower smallest_count')
      if not silent:
        raise InputError(lacking)
      self._reporter.warn(lacking)

  def _sizes(self) -> np.ndarray:
    """n_k f32[S] of the sites that were heard of; the sampler looks at no other's."""
    return np.asarray([self._sites[site].size if site in self._sites else 0.0
                       for site in range(len(self._study.agreed.names))], np.float32)

  def _restored(self) -> tuple[FedState, list[dict]]:
    """The newest whole checkpoint, or the state before round 0; files hold its rounds only."""
    fresh = apart.fresh_server(
      self._study.agreed.parts, jax.tree.map(jnp.asarray, self._study.adapter))
    state, lines = checkpoint.newest(
      self._workdir / CHECKPOINTS, fresh, self._reporter.warn) or (fresh, [])
    files.write_lines(self._workdir / METRICS, lines)
    path = self._workdir / LEDGER
    # A kill may have left half a row at the end.
    text = path.read_text(encoding='utf-8').rpartition('\n')[0] if path.exists() else ''
    rows = text.splitlines()[1:]
    kept = [row for row in rows if int(row.split(',')[0]) <= len(lines)]
    files.write_text(path, '\n'.join([HEAD, *kept]) + '\n')
    return state, lines

  def _save(self, state: FedState, lines: list[dict]) -> None:
    """The round's lines are on disk before its checkpoint is; after a kill they are cut again."""
    lock.check_there(self._workdir)
    with (self._workdir / LEDGER).open('a', encoding='utf-8') as file:
      file.writelines(f'{line}\n' for line in ledger_lines(self._talk.traffic))
    options = self._study.options
    checkpoint.save(
      self._workdir / CHECKPOINTS, checkpoint.host_copy(state), lines, options.keep,
      options.keep_best)
    files.write_lines(self._workdir / METRICS, lines)

  def _finish(self, state: FedState, lines: list[dict], begun: float) -> dict[str, Any]:
    """Gives every site its adapter, and writes the server's files."""
    study, changed = self._study, int(state.round)
    agreed = study.agreed
    questions = {}
    for site in self._sites:
      name = agreed.names[site]
      fields = {'changed': changed, 'used': last_used(lines, name)}
      questions[site] = Question(fields, wire.plain_arrays(
        agreed.wire.whole_ranks, 'adapter', state.adapter, agreed.wire.shared, site)
        | columns_between(agreed.wire, state.folded, 0, changed))
    finished = self._talk.ask('finish', study.options.rounds, questions)
    for site, answer in finished.items():
      if isinstance(answer, Missing):
        self._reporter.warn(f'site {agreed.names[site]} has no final adapter, it {answer.reason}; '
                            'the same command sends it again')
    if shares_all(study.sharing, study.adapter):
      adapter = own_adapter(study.sharing, state.adapter, state.adapter, state.folded)
      study.trainable.save(jax.device_get(adapter), self._workdir / study.trainable.folder)
    heard = self._scores(
      [site for site, answer in finished.items() if not isinstance(answer, Missing)], len(lines))
    summary = summary_of(study, lines, heard, time.monotonic() - begun, self._reporter.warnings)
    files.write_json(self._workdir / 'summary.json', summary)
    (self._workdir / report.FILE).unlink(missing_ok=True)
    report.freshen(self._workdir, 0)
    return summary

  def _scores(self, sites: list[int], rounds: int) -> dict[str, Heard]:
    """{site: the scores that it tells}; who does not is named. Scores of an earlier call stay."""
    names, path = self._study.agreed.names, self._workdir / 'summary.json'
    before = files.read_json(path) if path.exists() else {}
    heard = {name: Heard(**one) for name, one in before.get('heard', {}).items()} if (
      before.get('rounds') == rounds) else {}
    for site, answer in self._talk.ask('score', rounds, dict.fromkeys(sites, Question())).items():
      told = answer if isinstance(answer, Missing) else heard_scores(answer.fields)
      if isinstance(told, Heard):
        heard[names[site]] = told
      elif names[site] not in heard:
        heard[names[site]] = Heard({}, None, None, told.reason if told else 'sent something else')
    for name in names:
      if kept := heard[name].kept if name in heard else 'it has no final adapter':
        some = 'some of its' if name in heard and heard[name].scores else 'no'
        self._reporter.warn(f'site {name} tells {some} scores: {kept}')
    return {name: heard[name] for name in names if name in heard}


def _sentence(line: dict, study: ServerStudy) -> str:
  """What is said of a round; a loss that a site keeps to itself is nan, as one that is none."""
  losses = [np.nan if loss is None and steps else loss for loss, steps in zip(
    line.get('train_loss', ()), line['steps'], strict=False)]
  return round_sentence(
    line | {'train_loss': losses}, study.options.rounds, study.options.signal,
    study.options.own_aggregator)


def _described(message: Message) -> Described | Missing:
  """What a site says of itself, checked."""
  fields = message.fields
  size, tasks, withheld = (fields.get(name) for name in ('size', 'tasks', 'withheld'))
  norm = number(fields, 'largest_update_norm')
  texts = [*tasks, *withheld, fields.get('data'), fields.get('model')] if (
    isinstance(tasks, list) and isinstance(withheld, list)) else [None]
  if not all(isinstance(text, str) for text in texts) or norm is None or norm < 0 or (
      size is not None and not 0 < (number(fields, 'size') or 0) < _MOST_EXAMPLES):
    return Missing('describes itself in other words than were agreed')
  return Described(
    float(np.float32(size)) if size is not None else 1.0, tuple(sorted(set(tasks))),
    fields['data'], fields['model'], tuple(withheld), norm, fields.get('privacy_required') is True)


def _recorded(workdir: Path, names: tuple[str, ...]) -> dict[int, Described]:
  """The sites that were heard of in an earlier call."""
  path = workdir / DESCRIBED
  if not path.exists():
    return {}
  try:
    return {
      names.index(name): Described(**{
        key: tuple(value) if isinstance(value, list) else value for key, value in one.items()})
      for name, one in files.read_json(path).items()}
  except (AttributeError, TypeError, ValueError):
    raise InputError(f'{path}: is not what was written; choose another --workdir') from None


def _check_streak(study: ServerStudy, lines: list[dict]) -> None:
  """Raises RuntimeError when no site could be used in the last `max_bad_rounds` rounds."""
  limit = study.options.max_bad_rounds
  if len(lines) >= limit and all(line.get('skipped') for line in lines[-limit:]):
    raise RuntimeError(
      f'rounds {len(lines) - limit + 1} to {len(lines)}: no site could be used, the warnings say '
      'why; the adapter is that of the round before')

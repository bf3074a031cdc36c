"""Runs a study: zero-shot scores, rounds with checkpoints, final scores, files."""

import resource
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from fedmedjax import exchange, tree, writer
from fedmedjax.checkpoint import latest_round
from fedmedjax.config import leaves
from fedmedjax.eval import evaluate
from fedmedjax.experiment import Data, Study, load_data, options, prepare
from fedmedjax.fed.round import site_adapter
from fedmedjax.fed.sharing import shares_all
from fedmedjax.fed.types import FedState
from fedmedjax.inputs import check_inputs, fingerprint
from fedmedjax.lock import check_free, locked
from fedmedjax.progress import Reporter
from fedmedjax.report import show, site_table
from fedmedjax.rounds import participant_names
from fedmedjax.training import CHECKPOINTS, StepDisplay, train
from fedmedjax.types import InputError

_compile_seconds = [0.0]


def _count_compilation(event: str, seconds: float, **_) -> None:
  if event == '/jax/core/compile/backend_compile_duration':
    _compile_seconds[0] += seconds


jax.monitoring.register_event_duration_secs_listener(_count_compilation)


def run(
  config: ConfigDict, workdir: Path, reporter: Reporter, data: Data | None = None
) -> dict:
  """Runs or resumes the study in `workdir` and returns its summary (see `_summary`).

  A finished run is only shown again. `data` may be given to share it between runs.

  Raises:
    InputError: bad configuration, data, model or workdir, before anything is compiled or saved.
    RuntimeError: training diverged or did not move, or the disk is full; finished rounds stay.
  """
  times = time.monotonic(), _compile_seconds[0]
  settings, rounds = writer.plain(leaves(config.to_dict())), options(config).rounds
  finished = check_continued(workdir, settings, rounds)
  if finished and finished['rounds'] == rounds:
    reporter.say(f'{workdir}: finished, nothing to do')
    show(finished, reporter)
    return finished
  with reporter.live():
    data = data or load_data(config, reporter)
    display = StepDisplay()
    study = prepare(config, data, display)
  workdir.mkdir(parents=True, exist_ok=True)
  with locked(workdir, lambda text: reporter.say(f'warning: {text}')):
    check_inputs(workdir, fingerprint(config, data))
    writer.claim(workdir, settings)
    return _carried_out(study, workdir, reporter, display, times)


def check_continued(workdir: Path, settings: dict, rounds: int) -> dict | None:
  """Whether a run of so many rounds may begin or go on there; writes nothing.

  Returns the summary of a run that was finished there, see `writer.check_workdir`.
  """
  finished = writer.check_workdir(workdir, settings)
  held = latest_round(workdir / CHECKPOINTS)
  if held > rounds:
    raise InputError(
      f'--workdir={workdir}: holds {held} rounds, config.fed.rounds={rounds}; ask for as many '
      'or more')
  check_free(workdir)
  return finished


def _carried_out(
  study: Study, workdir: Path, reporter: Reporter, display: StepDisplay,
  times: tuple[float, float],
) -> dict:
  """Trains, scores and writes -> summary; `times`: the clock and the compiler's at the start."""
  # A finished run that goes on has no summary until it has finished again.
  (workdir / 'summary.json').unlink(missing_ok=True)
  rounds = study.options.rounds
  with reporter.live():
    reporter.say(site_table(study.data.sites, study.data.external))
    zero_shot = None
    if study.options.zero_shot and rounds and study.learner.untrained is not None:
      zero_shot = _score_all(study, None, workdir / 'predictions' / 'zero_shot', reporter)
    state, lines, earlier = None, [], 0.0
    if rounds:
      state, lines, earlier = train(study, workdir, reporter, display)
      for folder, adapter in _adapters(study, state, workdir / study.learner.folder).items():
        study.learner.save(adapter, folder)
    scores = _score_all(study, state, workdir / 'predictions', reporter)
  summary = _summary(study, lines, scores, zero_shot) | {
    'wall_seconds': earlier + time.monotonic() - times[0],
    'compile_seconds': _compile_seconds[0] - times[1],
    'quarantined': sum(len(line.get('quarantined', ())) for line in lines),
    'skipped_rounds': sum(line.get('skipped', False) for line in lines),
    'peak_memory_bytes': _peak_memory(),
  }
  writer.write_text(workdir / 'ledger.csv', exchange.ledger_csv(study.meeting, lines))
  writer.write_json(workdir / 'summary.json', summary)
  show(summary, reporter)
  return summary


def _adapters(study: Study, state: FedState | None, folder: Path) -> dict[Path, dict]:
  """Where each adapter of the run goes: one for all, or one a site when leaves are its own."""
  if state is None:
    return {folder: study.learner.untrained}
  if shares_all(study.sharing, study.learner.adapter):
    return {folder: site_adapter(state, study.sharing, 0)}
  return {
    folder / name: site_adapter(state, study.sharing, index)
    for index, name in enumerate(participant_names(study))}


def _score_all(
  study: Study, state: FedState | None, folder: Path, reporter: Reporter
) -> dict[str, evaluate.SiteScores]:
  """Decodes and scores every site's test set; state None = the base model alone.

  A site is answered by the shared adapter or its own. An external cohort has none of its own:
  when leaves are sites' own, every site's adapter answers and the counts add up. Zero-shot answers
  found on disk are used again, since no round changes them.
  """
  adapters = _adapters(study, state, Path())
  scores = {}
  for site in (*study.data.sites, *study.data.external):
    path = folder / f'{site.name}.jsonl'
    records = writer.read_lines(path) if state is None else []
    if len(records) != len(site.test):
      records = []
      answering = [adapters[Path(site.name)]] if Path(site.name) in adapters else (
        list(adapters.values()))
      what = 'zero-shot' if state is None else 'decoding'
      with reporter.task(f'{what} {site.name}', len(site.test) * len(answering)) as advance:
        for adapter in answering:
          records += study.learner.answer(adapter, site, advance)
      writer.write_lines(path, records)
    scores[site.name] = evaluate.score(
      site.test, study.learner.scored(site), records, study.options.seed,
      study.options.bootstrap_samples)
  return scores


def _summary(study: Study, lines: list[dict], scores: dict, zero_shot: dict | None) -> dict:
  """summary.json without what only the whole run knows (times, memory)."""
  learner = study.learner

  def shown(scores):
    return {name: evaluate.by_task(learner.task, site.scores) for name, site in scores.items()}

  def total(key):
    return sum(line[key] for line in lines)

  seconds = total('seconds')
  # What the same exchanges would have cost with the whole model, both ways.
  exchanges = sum(
    count > 0 for line in lines for count in line['site_bytes_up'] + line['site_bytes_down'])
  return writer.plain({
    'preset': study.options.preset, 'seed': study.options.seed, 'rounds': len(lines),
    'sites': [site.name for site in study.data.sites],
    'external': [site.name for site in study.data.external],
    'train_examples': [len(site.train) for site in study.data.sites],
    'scores': shown(scores),
    'bytes_up': total('bytes_up'), 'bytes_down': total('bytes_down'),
    'bytes_full_model': learner.whole_bytes * exchanges,
    'adapter_parameters': tree.size(learner.adapter),
    'base_parameters': learner.whole_parameters,
    'local_steps': total('local_steps'),
    'tokens_per_second': total('tokens') / seconds if seconds else 0.0,
    'examples_per_second': total('examples') / seconds if seconds else 0.0,
    'copy_rate': np.mean([site.copy_rate for site in scores.values()]),
    'parse_failure_rate': np.mean([site.parse_failure_rate for site in scores.values()]),
    'site_weights': [line['weights'] for line in lines],
    'cohorts': [line['sites'] for line in lines],
    'simulated_seconds': total('simulated_seconds'),
    'zero_shot': zero_shot and {'scores': shown(zero_shot)},
    **learner.summary,
  })


def _peak_memory() -> int:
  """Bytes: of the accelerator when it counts them, else of this process."""
  stats = jax.local_devices()[0].memory_stats() or {}
  # ru_maxrss is in KiB on Linux.
  return stats.get('peak_bytes_in_use') or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

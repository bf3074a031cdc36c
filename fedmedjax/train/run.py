"""Runs a study: zero-shot scores, rounds with checkpoints, final scores, files."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from fedmedjax import report, tree
from fedmedjax.eval import evaluate
from fedmedjax.experiment import communication, matmul, privacy
from fedmedjax.experiment.build import load_data, options, prepare
from fedmedjax.experiment.config import leaves
from fedmedjax.experiment.methods import Own, harmless_keys, unread_weights
from fedmedjax.experiment.own_parts import own_parts
from fedmedjax.experiment.own_schema import study_schema
from fedmedjax.experiment.placing import on_host
from fedmedjax.experiment.round_log import participant_names
from fedmedjax.experiment.stored import quoted_sentences
from fedmedjax.experiment.types import Data, Study
from fedmedjax.fed.aggregators.weighted_mean import adaptive_weights
from fedmedjax.fed.clusters import has_clusters
from fedmedjax.fed.round import global_adapter
from fedmedjax.fed.types import FedState
from fedmedjax.report.description import used
from fedmedjax.report.terminal import show, site_table
from fedmedjax.report.text_tables import is_of_rows
from fedmedjax.report.warnings import warnings
from fedmedjax.runtime import device
from fedmedjax.runtime.cli import versions
from fedmedjax.runtime.phrases import many
from fedmedjax.runtime.processes import ALONE, Processes
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store import files, secret, trackers, words
from fedmedjax.store.checkpoint import latest_round
from fedmedjax.store.lock import check_free
from fedmedjax.train import scoring, together
from fedmedjax.train.fingerprint import (
  check_inputs,
  compare_inputs,
  fingerprint,
  may_mend,
  own_checksums,
  schema_checksum,
  starting_adapter,
  write_own_parts,
  write_schema,
)
from fedmedjax.train.gathered import all_statistics
from fedmedjax.train.loop import CHECKPOINTS, Trained, planned, train
from fedmedjax.train.memory import Plan
from fedmedjax.train.round_progress import StepDisplay
from fedmedjax.train.scoring import (
  counted,
  forced_all,
  forced_shown,
  run_summary,
  score_all,
  shown,
)
from fedmedjax.types import InputError

# Where sites have adapters of their own: the folder of the one that is averaged for all sites.
_GLOBAL = 'global'


def run(
  config: ConfigDict, workdir: Path, reporter: Reporter, data: Data | None = None,
  own: Own | None = None, processes: Processes = ALONE,
) -> dict:
  """Runs or resumes the study in `workdir` and returns its summary (see `run_summary`).

  A finished run is only shown again.

  Args:
    config: validated.
    workdir: the run's folder, made when absent.
    reporter: is told what happens.
    data: of `load_data`, to share it between runs; None = it is loaded.
    own: parts that were given in Python, by key, see `experiment/own_parts.py`.
    processes: of the run, all of which call this; process 0 keeps the folder.

  Raises:
    InputError: bad configuration, data, model or workdir, before anything is compiled or saved.
    RuntimeError: training diverged or did not move, or the disk is full; finished rounds stay.
  """
  times = time.monotonic(), device.compile_seconds()
  together.check_start(processes, config, workdir)
  config = matmul.settled(
    config, reporter, [workdir], data.settings.get(matmul.KEY) if data else None, processes)
  settings, rounds = files.plain(leaves(config.to_dict())), options(config).rounds
  mine = own_parts(settings, own)
  finished = processes.of_first(
    'the folder of the run', lambda: check_continued(workdir, settings, rounds, mine))
  if finished and privacy.is_done(finished, rounds):
    given = starting_adapter(config) | own_checksums(mine) | schema_checksum(
      study_schema(config.data.schema, config.data.prompt))
    processes.once(partial(compare_inputs, workdir, given, only=given))
    processes.once(_shown_again, workdir, config, reporter, finished, data)
    return finished
  trackers.check_installed(config.log.trackers)
  if unread := unread_weights(settings, mine):
    reporter.warn(
      f'{mine["fed.aggregator"].name} chooses its own weights and reads no {", ".join(unread)}')
  with reporter.live():
    data = data or load_data(config, reporter, own=mine, processes=processes)
    display = StepDisplay()
    study = prepare(config, data, display, mine, secret=noise_secret(
      settings, workdir, processes))
    reporter.say(site_table(data.sites, data.tested, data.external, data.server))
    if data.skew:
      dealt = data.skew.told('targets') if is_of_rows(data.tested) else data.skew
      reporter.say(f'sites dealt out: {dealt}')
    inputs = fingerprint(config, data, mine)
    mendable = may_mend(workdir, settings)
    processes.once(partial(compare_inputs, workdir, inputs, mendable=mendable))
    # After all checks, since compiling may take minutes.
    plan = planned(study, workdir, reporter) if rounds else None
    if plan:
      reporter.say(str(plan))
  with together.kept(processes, workdir, reporter.warn):
    once = processes.once
    once(check_inputs, workdir, inputs, mendable)
    once(files.claim, workdir, settings)
    if study.secret is not None:
      once(secret.keep, workdir, study.secret)
    once(write_own_parts, workdir, mine)
    once(write_schema, workdir, data.schema)
    if not config.store.text:
      # Of zero-shot, from before the key was changed.
      once(words.take_out, workdir)
    # Nobody reads there what is not cleared yet.
    processes.meet('the folder is prepared')
    with trackers.started(
        study.options.trackers if processes.first else (), workdir, settings,
        participant_names(study), reporter.warn) as tracker:
      summary = _carried_out(study, workdir, reporter, display, plan, times, tracker)
    once(report.freshen, workdir, quoted_sentences(config, data.given))
    return summary


def noise_secret(settings: dict, workdir: Path, processes: Processes) -> int | None:
  """What noise and draws of a private run are made of, the same in all its processes; None = of
  its seed, or there are none."""
  if not privacy.is_private(settings) or settings['privacy.noise_from_seed']:
    return None
  return int(processes.of_first('the noise secret', lambda: str(secret.read_or_drawn(
    workdir, bool(latest_round(workdir / CHECKPOINTS))))))


def _shown_again(
  workdir: Path, config: ConfigDict, reporter: Reporter, finished: dict, data: Data | None
) -> None:
  """What a finished run says; its report is made anew where it is older than this version."""
  reporter.say(f'{workdir}: finished, nothing to do')
  show(finished, reporter, workdir)
  if not config.store.text:
    words.take_out(workdir)
    # The folder says what it holds.
    files.claim(workdir, files.read_json(workdir / 'config.json') | {'store.text': False})
  report.freshen(workdir, quoted_sentences(config, data.given if data else ()))


def check_continued(
  workdir: Path, settings: dict, rounds: int, own: Own | None = None
) -> dict | None:
  """Whether a run of so many rounds may begin or go on there; writes nothing.

  Args:
    workdir: may be absent.
    settings: flat config as JSON values, {'fed.rounds': 3, ...}.
    rounds: of the run, 0 = no training.

  Returns:
    The summary of a run that was finished there, else None; see `files.check_workdir`.

  Raises:
    InputError: another run's folder, one with more rounds, or one that is in use.
  """
  finished = files.check_workdir(workdir, settings, harmless_keys(settings, own))
  held = latest_round(workdir / CHECKPOINTS)
  if held > rounds:
    raise InputError(
      f'--workdir={workdir}: holds {many(held, "round")}, config.fed.rounds={rounds}; ask for as '
      'many or more')
  check_free(workdir)
  return finished


def _carried_out(
  study: Study, workdir: Path, reporter: Reporter, display: StepDisplay, plan: Plan | None,
  times: tuple[float, float], tracker: trackers.Tracker,
) -> dict:
  """Trains, scores and writes -> summary.

  Args:
    plan: of `loop.planned`.
    times: seconds of the clock and of compilation at the start of this call.
    tracker: is told of the rounds and of the scores.
  """
  once = study.processes.once
  # A finished run that goes on has no summary until it has finished again.
  for name in ('summary.json', report.FILE):
    once(partial((workdir / name).unlink, missing_ok=True))
  with reporter.live():
    zero_shot = described(study, workdir, reporter)
    trained = Trained(None, [], 0.0, 0.0, None)
    if study.options.rounds:
      trained = train(study, workdir, reporter, display, plan, tracker)
  return scored(study, workdir, reporter, trained, zero_shot, times, tracker)


def described(study: Study, workdir: Path, reporter: Reporter) -> dict | None:
  """Writes what the sites hold -> scores before training; None where nobody asks for them."""
  known = all_statistics(study) if study.spread else None
  study.processes.once(lambda: files.write_json(workdir / report.SITES, used(
    study.data.sites, study.data.tested, study.data.external, study.data.server,
    study.data.schema, known)))
  asked = study.options.zero_shot and study.options.rounds
  if not asked or study.trainable.untrained is None:
    return None
  zero_shot, _ = score_all(
    study, scoring.adapters(study, None), workdir / 'predictions' / 'zero_shot', reporter,
    trained=False, only=study.options.max_zero_shot)
  return zero_shot


def scored(
  study: Study, workdir: Path, reporter: Reporter, trained: Trained, zero_shot: dict | None,
  times: tuple[float, float], tracker: trackers.Tracker,
  told: Callable[[dict, Reporter, Path], None] = show,
) -> dict:
  """Saves the adapters of a run, scores them and writes its files -> summary.

  Args:
    trained: of `loop.train`; without any round where nothing is trained.
    zero_shot: of `score_all`, before training.
    times, tracker: see `_carried_out`.
    told: shows the summary.
  """
  once, rounds, few = study.processes.once, study.options.rounds, study.options.max_zero_shot
  with reporter.live():
    state, lines = trained.state, trained.lines
    adapters, averaged = scoring.adapters(study, state), _averaged(study, state, lines)
    for name, adapter in (adapters | averaged).items() if rounds else ():
      once(study.trainable.save, adapter, workdir / study.trainable.folder / name)
    scores, crossed = score_all(
      study, adapters, workdir / 'predictions', reporter, trained=rounds > 0,
      cross=study.options.cross_site and len(adapters) > 1, beside=few if zero_shot else 0)
    forced = forced_all(study, adapters, reporter, cross=bool(crossed))
    global_scores = None
    if averaged:
      global_scores, _ = score_all(study, averaged, workdir / 'predictions' / _GLOBAL, reporter)
  once(files.write_json, workdir / 'predictions' / evaluate.COUNTS, counted(
    study, adapters, scores, crossed, global_scores, zero_shot, forced))
  summary = run_summary(study, lines, scores, zero_shot, global_scores) | {
    **({'privacy': privacy.entry(study.ledger, lines, rounds)} if study.ledger else {}),
    'cross_site': files.plain({
      name: shown(row) for name, row in crossed.items()}) or None,
    **({'teacher_forced': forced_shown(forced[0])} if study.options.teacher_forced else {}),
    'wall_seconds': trained.earlier + time.monotonic() - times[0],
    'compile_seconds': device.compile_seconds() - times[1],
    'checkpoint_seconds': trained.saving,
    'quarantined': sum(len(line.get('quarantined', ())) for line in lines),
    'skipped_rounds': sum(line.get('skipped', False) for line in lines),
    # Of the accelerator when it counts them, else of this process.
    'peak_memory_bytes': device.peak(),
    # None = nothing was trained now.
    'predicted_peak_bytes': trained.plan.peak if trained.plan else None, 'versions': versions(),
  }
  once(_written, study, workdir, lines, summary, tracker)
  told(summary, reporter, workdir)
  return summary


def _written(
  study: Study, workdir: Path, lines: list[dict], summary: dict, tracker: trackers.Tracker
) -> None:
  """Writes what a finished run leaves; the summary, which says that it is finished, last."""
  summary['warnings'] = warnings(summary, lines, workdir / 'predictions')
  files.write_text(workdir / 'ledger.csv', communication.ledger_csv(study.communication, lines))
  tracker.finish(lines, summary)
  files.write_json(workdir / 'summary.json', summary)


def _averaged(study: Study, state: FedState | None, lines: list[dict]) -> dict[str, dict]:
  """{_GLOBAL: the adapter averaged for all sites} where some leaves are private or sites are in
  clusters, else {}.

  Private leaves are averaged once, at the end, with weights n_k to the power of
  config.fed.size_power (docs/methods.md, section 4), over the sites that ever sent anything: the
  others have not trained theirs. {} also when sites share nothing: each has trained from an A of
  its own, so their mean has no meaning.
  """
  paths = tree.paths(study.trainable.adapter)
  own = [path for path in paths if not study.sharing.shared(path)]
  if state is None or len(own) == len(paths) or not (own or has_clusters(state)):
    return {}
  trained = {
    name for line in lines for name, steps in zip(line['sites'], line['steps'], strict=True)
    if steps}
  sizes = np.where(
    [name in trained for name in participant_names(study)], study.schedule.weights, 0)
  weights = adaptive_weights(
    sizes, np.zeros_like(sizes), size_power=study.options.size_power, loss_power=0.0,
    temperature=1.0)
  return {_GLOBAL: on_host(study, global_adapter(state, study.sharing, weights))}


"""A dry run, `main --validate_only`: what a run would do and need. It runs and writes nothing."""

from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.table import Table

from fedmedjax.experiment import communication, matmul
from fedmedjax.experiment.build import load_data, options, prepare
from fedmedjax.experiment.config import leaves
from fedmedjax.experiment.round_log import participant_names
from fedmedjax.experiment.types import Study
from fedmedjax.report.terminal import site_table
from fedmedjax.runtime.phrases import many
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store import checkpoint, files, trackers
from fedmedjax.train import loop, memory
from fedmedjax.train.duration import expected
from fedmedjax.train.fingerprint import compare_inputs, fingerprint, may_mend
from fedmedjax.train.loop import CHECKPOINTS
from fedmedjax.train.memory import Plan
from fedmedjax.train.run import check_continued


def dry_run(config: ConfigDict, workdir: Path | None, reporter: Reporter) -> None:
  """Checks config, workdir, notes, model and inputs as a run does, and prints what it would do.

  Raises:
    InputError: as a run would.
  """
  config = matmul.settled(config, reporter, [workdir] if workdir else [])
  settings = files.plain(leaves(config.to_dict()))
  if workdir:
    check_continued(workdir, settings, options(config).rounds)
  trackers.check_installed(config.log.trackers)
  with reporter.live():
    data = load_data(config, reporter)
    study = prepare(config, data)
  if workdir:
    compare_inputs(
      workdir, fingerprint(config, data, study.own), mendable=may_mend(workdir, settings))
  reporter.say(site_table(data.sites, data.tested, data.external, data.server))
  done = checkpoint.latest_round(workdir / CHECKPOINTS) if workdir else 0
  if study.options.rounds:
    reporter.say(_rounds_table(study, done))
    # Shown even when all rounds are done.
    plan = loop.planned(study, None, reporter)
    reporter.say(_memory_table(plan))
    # The most of the table: the line of a run, whose number its summary has, too.
    reporter.say(str(plan))
    with reporter.task('timing a product') as advance:
      duration = expected(study, plan, loop.first_inputs(study), done)
      advance()
    reporter.say(str(duration))
  device = jax.devices()[0]
  reporter.say(
    f'{many(len(jax.devices()), "device")}, '
    + ' '.join(dict.fromkeys((device.platform, device.device_kind)))
    + f'; {done} of {study.options.rounds} rounds are done. Nothing was written.')


def planned(study: Study) -> list[dict]:
  """For every round, the keys of its line in metrics.jsonl that are known before it is run."""
  return [
    communication.participation_line(
      study.communication, study.schedule, number,
      communication.round_participation(study.communication, study.schedule, number),
      participant_names(study))
    for number in range(study.options.rounds)]


def _rounds_table(study: Study, done: int) -> Table:
  table = Table(title='Rounds')
  for name in ('round', 'sites', 'steps', 'examples', 'tokens', 'MB down', 'MB up'):
    table.add_column(name, justify='right')
  lines = planned(study)
  for line in lines[done:]:
    table.add_row(str(line['round']), str(len(line['sites'])), *_work(line))
  table.add_section()
  table.add_row('all', '', *_work({
    key: sum(line[key] for line in lines)
    for key in ('local_steps', 'examples', 'tokens', 'bytes_down', 'bytes_up')}))
  return table


def _work(line: dict) -> list[str]:
  return [f'{line[key]:,}' for key in ('local_steps', 'examples', 'tokens')] + [
    f'{line[key] / 1e6:.2f}' for key in ('bytes_down', 'bytes_up')]


def _memory_table(plan: Plan) -> Table:
  table = Table(title=f'Memory, with {plan.execution}')
  table.add_column('while a round runs')
  table.add_column('MiB', justify='right')

  def row(name: str, count: int) -> None:
    table.add_row(name, f'{count / 2**20:,.1f}')

  for use, count in plan.training.items():
    row(use, count)
  table.add_section()
  row('together', sum(plan.training.values()))
  row('while the largest batch is decoded', plan.decoding)
  row('before', plan.before)
  table.add_section()
  row(f'there are, of which {memory.SHARE:.0%} may be used', plan.limit)
  return table

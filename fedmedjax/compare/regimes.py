"""Runs the regimes of a study and tells what came of it: tables, sentences, files."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from fedmedjax import report
from fedmedjax.compare import api_run, comparisons, tables
from fedmedjax.compare.comparisons import Draws, Runs
from fedmedjax.compare.scenarios import (
  SETTINGS,
  Part,
  Row,
  Study,
  check_new_site,
  leaves_adapter,
  parts,
)
from fedmedjax.eval.paired import read_answers
from fedmedjax.experiment.build import load_data, options
from fedmedjax.experiment.defaults import PRESETS
from fedmedjax.experiment.notes import load_corpora
from fedmedjax.experiment.types import Data
from fedmedjax.report.terminal import compare_table, relation_tables, with_global
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store import files
from fedmedjax.train.run import run
from fedmedjax.types import InputError

_FILES = ('compare.json', 'findings.json', report.FILE)

# {setting: {label of the part: {row: its runs, one a seed}}}
Results = dict[str, dict[str, dict[str, Runs]]]


def _check_budget(rows: Iterable[Row]) -> None:
  """Raises InputError when regimes would take unequal steps: epochs count examples, and a BERT's
  are windows."""
  trained = [row.config.fed for row in rows if row.config.fed.train]
  if len({fed.learner for fed in trained}) > 1 and not all(fed.local_steps for fed in trained):
    raise InputError(
      'config.fed.local_steps=0: a BERT and a LLaMA take unlike numbers of steps an epoch; name a '
      'number >= 1, so that all regimes take as many')


def _check_workdir(workdir: Path) -> None:
  """Raises InputError when the folder holds what is no part of a comparison."""
  known = {*PRESETS, *SETTINGS, *_FILES}
  foreign = sorted(
    path.name for path in (workdir.iterdir() if workdir.is_dir() else ())
    # What a kill left of a file that was being written is written over; hidden files are the
    # system's, as .DS_Store.
    if path.name.removesuffix('.part') not in known and not re.match(
      r'api_|seed_\d+$|\.', path.name))
  if foreign:
    raise InputError(f'--workdir={workdir}: holds {foreign[0]!r}, which is no part of a comparison')


def compare(
  study: Study, settings: Sequence[str], seeds: Sequence[int], reporter: Reporter
) -> Results:
  """Runs all regimes in all settings -> their runs; writes findings.json and report.html,
  of the setting in_domain compare.json, too; each other setting has a folder of its own.

  Every trained regime plans the same steps on the same examples: single-site as the federation
  does, centralised all sites' steps in one place.

  Raises:
    InputError: as `run`, or an unknown regime; before the first one starts.
  """
  if not study.regimes:
    raise InputError(f'--regimes is empty: a list of {", ".join(PRESETS)}, api:MODEL is allowed')
  planned = parts(study, settings, seeds)
  _check_workdir(study.folder)
  for part in planned:
    _check_budget(part.rows.values())
    for row in part.rows.values():
      files.check_workdir(row.folder, row.settings, row.harmless)
  # The first part's data are loaded at once, with all that can be wrong in them.
  federations: dict[int, list] = {}
  for part in planned[1:]:
    if not all(map(_finished, part.rows.values())):
      corpora = load_corpora(_config(part))
      if part.setting == 'new_site' and part.seed not in federations:
        first, = (one for one in planned if (one.setting, one.seed) == ('in_domain', part.seed))
        federations[part.seed] = load_corpora(_config(first)).sites
      check_new_site(part, corpora.sites, federations.get(part.seed, ()))
  if 'new_site' in settings and (
      left := [name for name in study.regimes if not leaves_adapter(name)]):
    reporter.say(f'new site: without {", ".join(left)}, for want of one adapter to start from')
  done: dict[tuple, list] = {}
  base = None
  for part in planned:
    base, summaries = _carry_out(part, base, reporter)
    for name, summary in summaries.items():
      answers = read_answers(part.rows[name].folder / 'predictions')
      done.setdefault((part.setting, part.label, name), []).append(
        (summary, answers['scores'], answers['cross_site'], answers['global']))
  results: Results = {}
  for (setting, label, name), runs in done.items():
    results.setdefault(setting, {}).setdefault(label, {})[name] = Runs(*zip(*runs, strict=True))
  for setting in settings:
    _tell(study, setting, planned, results[setting], reporter)
  return results


def _config(part: Part) -> ConfigDict:
  """Of any of its rows: they read the same notes."""
  return next(iter(part.rows.values())).config


def _carry_out(part: Part, base, reporter: Reporter) -> tuple:
  """Runs a part's rows -> (the language model, {row: summary}); `base`: if it was loaded before."""
  place = ' '.join(filter(None, (part.setting.replace('_', ' '), part.label)))
  data: dict[str, Data] = {}
  # All of it before anything runs, so that mistakes show first.
  for row in (row for row in part.rows.values() if not _finished(row)):
    learner = row.config.fed.learner
    if learner not in data:
      with reporter.live():
        data[learner] = load_data(row.config, reporter, base)
      base = data[learner].base if learner == 'lora' else base
  for name, row in part.rows.items():
    if name.startswith('api:'):
      api_run.plan(row.config, data[row.config.fed.learner])
  summaries = {}
  for name, row in part.rows.items():
    reporter.say(f'{place}, seed {part.seed}: {name}')
    summaries[name] = row.run(row.config, row.folder, reporter, data.get(row.config.fed.learner))
  return base, summaries


def _finished(row: Row) -> bool:
  """Whether the run is only shown again; one that asks an endpoint may have questions left."""
  summary = files.check_workdir(row.folder, row.settings, row.harmless)
  return row.run is run and bool(summary) and summary['rounds'] == options(row.config).rounds


class Told(NamedTuple):
  """What there is to say of a setting beside its rows' own scores."""

  tables: list[report.Table]
  plots: list[report.Plot]
  found: list[comparisons.Finding]
  missing: Sequence[str] = ()  # what was not compared, and why


def _tell(
  study: Study, setting: str, planned: Sequence[Part], by_label: dict[str, dict[str, Runs]],
  reporter: Reporter,
) -> None:
  """Tables and sentences of a setting; its files are in WORKDIR or WORKDIR/SETTING."""
  draws = Draws(study.config.seed, study.config.eval.bootstrap_samples)
  told = (_regimes if setting == 'in_domain' else _curves)(setting, by_label, draws)
  folder = study.folder / ('' if setting == 'in_domain' else setting)
  if setting == 'in_domain':
    merged = {name: comparisons.merged(runs, draws) for name, runs in by_label[''].items()}
    files.write_json(folder / 'compare.json', files.plain(merged))
    shown = with_global(merged)
    first = next(iter(shown.values()))
    if any('ner' in tasks for tasks in first['scores'].values()):
      reporter.say(compare_table(shown, first['sites'], first['external']))
    for table in relation_tables(shown, first['sites'], first['external']):
      reporter.say(table)
  for table in told.tables:
    reporter.say(tables.terminal_table(table))
  sentences = [str(finding) for finding in told.found] + [*told.missing]
  for sentence in sentences:
    reporter.say(sentence)
  files.write_json(folder / 'findings.json', [finding.record() for finding in told.found])
  # Single runs are shown of one seed and one part, the last.
  own = [part for part in planned if part.setting == setting]
  part = [part for part in own if part.seed == own[0].seed][-1]
  if len({part.seed for part in own}) > 1:
    sentences.append(f'These are over all seeds; what is shown of single runs is of {part.seed}.')
  report.write_report(
    folder / report.FILE, study.folder.resolve().name + (
      '' if setting == 'in_domain' else f': {setting.replace("_", " ")}'),
    {name: row.folder for name, row in part.rows.items()}, examples=study.config.report.examples,
    sentences=sentences, tables=told.tables, plots=told.plots)


def _regimes(_: str, by_label: dict[str, dict[str, Runs]], draws: Draws) -> Told:
  rows = by_label['']
  builds = (
    tables.seeds_table, tables.spread_table, tables.cross_site_table)
  shown = [
    build(rows, score, draws) for score in comparisons.scores_of(rows.values()) for build in builds]
  missing = [
    'No method is compared with the best single site, nor is any adapter tested at another site: '
    'that takes config.eval.cross_site=True.'
  ] if 'single_site' in rows and len(rows['single_site'].summaries[0]['sites']) > 1 and not all(
    rows['single_site'].cross_site) else []
  return Told(
    [table for table in shown if table], [], comparisons.comparisons(rows, 'in_domain', '', draws),
    missing)


# Setting -> title of its table, and its parts' labels in sentences.
_TITLES = {
  'leave_one_out': ('Each site, left out of training', 'trained without {}'),
  'scaling': ('Notes dealt out to so many sites', '{} sites'),
  'new_site': ('A new site, fine-tuned on so many of its sentences', 'n = {}')}


def _curves(setting: str, by_label: dict[str, dict[str, Runs]], draws: Draws) -> Told:
  """Settings of several parts: a column each, and a line where parts are numbers."""
  told, (title, words) = Told([], [], []), _TITLES[setting]
  steps = ', '.join(
    f'{label}: {max(runs.summaries[0]["local_steps"] for runs in rows.values()):g}'
    for label, rows in by_label.items())
  for score in comparisons.scores_of(
      runs for rows in by_label.values() for runs in rows.values()):
    found = tables.curve(by_label, score, draws, external=setting == 'leave_one_out')
    told.tables.append(tables.curve_table(
      title, f'Local steps in all, {steps}.', list(by_label), found, score))
    if setting != 'leave_one_out':
      x = {label: _place(label, rows) for label, rows in by_label.items()}
      told.plots.append(tables.curve_plot(
        title, 'sentences' if setting == 'new_site' else 'sites', x, found, score))
  by_words = {words.format(label): rows for label, rows in by_label.items()}
  if setting == 'new_site':
    told.found.extend(comparisons.new_site_comparisons(by_words, draws, words.format(0)))
  else:
    for label, rows in by_words.items():
      told.found.extend(comparisons.comparisons(rows, setting, label, draws))
  if setting == 'scaling' and len(by_label) > 1:
    told.found.extend(comparisons.scaling_comparisons(
      {int(label): rows for label, rows in by_label.items()}, draws))
  return told


def _place(label: str, rows: dict[str, Runs]) -> float:
  """A number as it is; 'all' at how many training examples that was."""
  first = next(iter(rows.values())).summaries[0]
  return float(label) if label.isdigit() else float(sum(first['train_examples']))

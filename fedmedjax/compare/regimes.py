"""Runs the regimes of a study and tells what came of it: tables, sentences, files."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from fedmedjax import report
from fedmedjax.compare import api_run, comparisons, tables
from fedmedjax.compare.comparisons import Draws, Runs
from fedmedjax.compare.contents import contents_of
from fedmedjax.compare.new_site import check_new_site
from fedmedjax.compare.rows import DEPTH, Row, Study, leaves_adapter
from fedmedjax.compare.scenarios import SCENARIOS, Part, parts
from fedmedjax.eval.paired import read_answers
from fedmedjax.experiment import matmul
from fedmedjax.experiment.build import load_data, options
from fedmedjax.experiment.defaults import PRESETS
from fedmedjax.experiment.notes import load_corpora
from fedmedjax.experiment.privacy import is_done
from fedmedjax.experiment.stored import quoted_sentences
from fedmedjax.experiment.types import Data
from fedmedjax.report.measures import asks_text
from fedmedjax.report.terminal import compare_table, relation_tables, with_global
from fedmedjax.report.text_tables import text_comparison
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store import files
from fedmedjax.store.words import SHOTS
from fedmedjax.train.run import run
from fedmedjax.types import InputError

_FILES = ('compare.json', 'findings.json', report.FILE)

# {scenario: {label of the part: {row: its runs, one for each seed}}}
Results = dict[str, dict[str, dict[str, Runs]]]


def _check_budget(rows: Iterable[Row]) -> None:
  """Raises InputError when regimes would take unequal numbers of steps.

  An epoch counts examples, and an example is a sentence of a LLaMA but a window of a BERT.
  """
  trained = [row.config.fed for row in rows if row.config.fed.train]
  if len({fed.learner for fed in trained}) > 1 and not all(
      fed.local_steps or fed.round_steps for fed in trained):
    raise InputError(
      'config.fed.local_steps=0: a BERT and a LLaMA take unlike numbers of steps an epoch; name a '
      'number >= 1, so that all regimes take as many')


def _check_workdir(workdir: Path) -> None:
  """Raises InputError when the folder contains a file that no comparison writes."""
  known = {*PRESETS, DEPTH, *SCENARIOS, *_FILES}
  foreign = sorted(
    path.name for path in (workdir.iterdir() if workdir.is_dir() else ())
    # A killed run may leave NAME.part, which will be overwritten; hidden files, such as .DS_Store,
    # are the system's.
    if path.name.removesuffix('.part') not in known and not re.match(
      r'api_|own_|seed_\d+$|\.', path.name))
  if foreign:
    raise InputError(f'--workdir={workdir}: holds {foreign[0]!r}, which is no part of a comparison')


def compare(
  study: Study, scenarios: Sequence[str], seeds: Sequence[int], reporter: Reporter
) -> Results:
  """Runs all regimes in all scenarios -> their runs.

  Writes findings.json and report.html for each scenario, in WORKDIR (in_domain, which also has
  compare.json) or WORKDIR/SCENARIO. Every trained regime takes the same steps on the same examples:
  single-site as the federation does, centralised all sites' steps in one place.

  Raises:
    InputError: as `run`, or an unknown regime; before the first one starts.
  """
  if not study.regimes:
    raise InputError(
      f'--regimes is empty: a list of {", ".join(PRESETS)}, FILE.py:FUNCTION, api:MODEL is allowed')
  study = _settled(study, scenarios, seeds, reporter)
  planned = parts(study, scenarios, seeds)
  _check_workdir(study.folder)
  for part in planned:
    for warning in part.warnings:
      reporter.warn(warning)
    _check_budget(part.rows.values())
    for row in part.rows.values():
      files.check_workdir(row.folder, row.settings, row.harmless)
  # The first part's data are read below, before it starts; those of later parts are checked now.
  federations: dict[int, list] = {}
  for part in planned[1:]:
    if not all(map(_finished, part.rows.values())):
      corpora = load_corpora(_config(part))
      if part.scenario == 'new_site' and part.seed not in federations:
        federation, = (
          other for other in planned if (other.scenario, other.seed) == ('in_domain', part.seed))
        federations[part.seed] = load_corpora(_config(federation)).sites
      check_new_site(part, corpora.sites, federations.get(part.seed, ()))
  if 'new_site' in scenarios and (
      without := [name for name in study.regimes
        if not leaves_adapter(study.config, name)]):
    reporter.say(f'new site: without {", ".join(without)}, for want of one adapter to start from')
  done: dict[tuple, list] = {}
  base = None
  for part in planned:
    base, summaries = _carry_out(part, base, reporter)
    for name, summary in summaries.items():
      answers = read_answers(part.rows[name].folder / 'predictions')
      done.setdefault((part.scenario, part.label, name), []).append(
        (summary, answers['scores'], answers['cross_site'], answers['global'],
         answers['validation']))
  results: Results = {}
  for (scenario, label, name), runs in done.items():
    results.setdefault(scenario, {}).setdefault(label, {})[name] = Runs(*zip(*runs, strict=True))
  for scenario in scenarios:
    _report(study, scenario, planned, results[scenario], reporter)
  return results


def _settled(
  study: Study, scenarios: Sequence[str], seeds: Sequence[int], reporter: Reporter
) -> Study:
  """The study with one value of config.model.matmul for all its language models.

  It is what the first run has that is there already, or it is decided now.
  """
  rows = [row for part in parts(study, scenarios, seeds) for row in part.rows.values()
          if row.run is run and row.config.fed.learner == 'lora']
  if not rows:
    return study
  chosen = {matmul.KEY: matmul.settled(
    rows[0].config, reporter, [row.folder for row in rows]).model.matmul}
  config = study.config.copy_and_resolve_references()
  config.update_from_flattened_dict(chosen)
  return study._replace(config=config, overrides=study.overrides | chosen)


def _config(part: Part) -> ConfigDict:
  """The configuration of any of its rows, since all rows of a part read the same notes."""
  return next(iter(part.rows.values())).config


def _carry_out(part: Part, base, reporter: Reporter) -> tuple:
  """Runs a part's rows -> (language model, {row: summary}).

  `base` is the language model, if an earlier part has loaded it, else None.
  """
  place = ' '.join(filter(None, (part.scenario.replace('_', ' '), part.label)))
  data: dict[str, Data] = {}
  # All data are read before the first row runs, so that mistakes in them show early.
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
  """Whether the run has only to be shown again. Runs of an endpoint may have questions left."""
  summary = files.check_workdir(row.folder, row.settings, row.harmless)
  return row.run is run and bool(summary) and is_done(
    summary, options(row.config).rounds)


def _report(
  study: Study, scenario: str, planned: Sequence[Part], by_label: dict[str, dict[str, Runs]],
  reporter: Reporter,
) -> None:
  """Prints a scenario's tables and sentences and writes its files."""
  draws = Draws(study.config.seed, study.config.eval.bootstrap_samples)
  contents = contents_of(scenario, by_label, draws)
  folder = study.folder / ('' if scenario == 'in_domain' else scenario)
  if scenario == 'in_domain':
    merged = {name: comparisons.merged(runs, draws) for name, runs in by_label[''].items()}
    # The runs have what their prompts show.
    files.write_json(folder / 'compare.json', files.plain({
      name: {key: summary[key] for key in summary if key != SHOTS}
      for name, summary in merged.items()}))
    shown = with_global(merged)
    first = next(iter(shown.values()))
    if any('ner' in tasks for tasks in first['scores'].values()):
      reporter.say(compare_table(shown, first['sites'], first['external']))
    if asks_text(first):
      reporter.say(text_comparison(shown, first['sites'], first['external']))
    for table in relation_tables(shown, first['sites'], first['external']):
      reporter.say(table)
  for table in contents.tables:
    reporter.say(tables.terminal_table(table))
  sentences = [*map(str, contents.comparisons), *contents.missing]
  for sentence in (*sentences, *filter(None, [contents.first])):
    reporter.say(sentence)
  files.write_json(folder / 'findings.json', [entry.record() for entry in contents.comparisons])
  # The report shows single runs of the first seed and of its last part only.
  own = [part for part in planned if part.scenario == scenario]
  part = [part for part in own if part.seed == own[0].seed][-1]
  if len({part.seed for part in own}) > 1:
    sentences.append(f'These are over all seeds; what is shown of single runs is of {part.seed}.')
  report.write_report(
    folder / report.FILE, study.folder.resolve().name + (
      '' if scenario == 'in_domain' else f': {scenario.replace("_", " ")}'),
    {name: row.folder for name, row in part.rows.items()},
    examples=min(quoted_sentences(row.config) for row in part.rows.values()),
    sentences=sentences, tables=contents.tables, plots=contents.plots, first=contents.first)

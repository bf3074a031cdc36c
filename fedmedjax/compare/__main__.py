"""Runs several regimes of one configuration with equal local steps and tabulates them.

    python -m fedmedjax.compare --config=configs/quickstart.py --workdir=runs/compare
      [--settings=in_domain,leave_one_out,scaling,new_site] [--seeds=42,43,44]

Each regime is a run of its own in WORKDIR/REGIME, so a stopped comparison resumes. Besides the
rows of PRESETS, `api:MODEL` asks a model behind an OpenAI-compatible endpoint; its address and key
come from OPENAI_BASE_URL and OPENAI_API_KEY, and `api` alone takes its model from OPENAI_MODEL.
The scenarios of --settings are in fedmedjax/compare/scenarios.py, the sentences about differences
in fedmedjax/compare/comparisons.py.
"""

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from fedmedjax import report
from fedmedjax.compare import api_run, comparisons, tables
from fedmedjax.compare.comparisons import Draws, Runs
from fedmedjax.compare.contents import contents_of
from fedmedjax.compare.scenarios import (
  SCENARIOS,
  Part,
  Row,
  Study,
  check_new_site,
  leaves_adapter,
  parts,
)
from fedmedjax.eval.paired import read_answers
from fedmedjax.experiment.build import load_data, options
from fedmedjax.experiment.config import parse
from fedmedjax.experiment.defaults import PRESETS
from fedmedjax.experiment.notes import load_corpora
from fedmedjax.experiment.types import Data
from fedmedjax.report.terminal import compare_table, relation_tables, with_global
from fedmedjax.runtime.cli import guarded, set_up
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store import files
from fedmedjax.train.run import run
from fedmedjax.types import InputError

REGIMES = ('zero_shot', 'single_site', 'centralised', 'fed_medlora', 'fed_medlora_plus')
_FILES = ('compare.json', 'findings.json', report.FILE)

# {scenario: {label of the part: {row: its runs, one for each seed}}}
Results = dict[str, dict[str, dict[str, Runs]]]


def _check_budget(rows: Iterable[Row]) -> None:
  """Raises InputError when regimes would take unequal numbers of steps.

  An epoch counts examples, and an example is a sentence of a LLaMA but a window of a BERT.
  """
  trained = [row.config.fed for row in rows if row.config.fed.train]
  if len({fed.learner for fed in trained}) > 1 and not all(fed.local_steps for fed in trained):
    raise InputError(
      'config.fed.local_steps=0: a BERT and a LLaMA take unlike numbers of steps an epoch; name a '
      'number >= 1, so that all regimes take as many')


def _check_workdir(workdir: Path) -> None:
  """Raises InputError when the folder contains a file that no comparison writes."""
  known = {*PRESETS, *SCENARIOS, *_FILES}
  foreign = sorted(
    path.name for path in (workdir.iterdir() if workdir.is_dir() else ())
    # A killed run may leave NAME.part, which will be overwritten; hidden files, such as .DS_Store,
    # are the system's.
    if path.name.removesuffix('.part') not in known and not re.match(
      r'api_|seed_\d+$|\.', path.name))
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
    raise InputError(f'--regimes is empty: a list of {", ".join(PRESETS)}, api:MODEL is allowed')
  planned = parts(study, scenarios, seeds)
  _check_workdir(study.folder)
  for part in planned:
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
      without := [name for name in study.regimes if not leaves_adapter(name)]):
    reporter.say(f'new site: without {", ".join(without)}, for want of one adapter to start from')
  done: dict[tuple, list] = {}
  base = None
  for part in planned:
    base, summaries = _carry_out(part, base, reporter)
    for name, summary in summaries.items():
      answers = read_answers(part.rows[name].folder / 'predictions')
      done.setdefault((part.scenario, part.label, name), []).append(
        (summary, answers['scores'], answers['cross_site'], answers['global']))
  results: Results = {}
  for (scenario, label, name), runs in done.items():
    results.setdefault(scenario, {}).setdefault(label, {})[name] = Runs(*zip(*runs, strict=True))
  for scenario in scenarios:
    _report(study, scenario, planned, results[scenario], reporter)
  return results


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
  return row.run is run and bool(summary) and summary['rounds'] == options(row.config).rounds


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
    files.write_json(folder / 'compare.json', files.plain(merged))
    shown = with_global(merged)
    first = next(iter(shown.values()))
    if any('ner' in tasks for tasks in first['scores'].values()):
      reporter.say(compare_table(shown, first['sites'], first['external']))
    for table in relation_tables(shown, first['sites'], first['external']):
      reporter.say(table)
  for table in contents.tables:
    reporter.say(tables.terminal_table(table))
  sentences = [*map(str, contents.comparisons), *contents.missing]
  for sentence in sentences:
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
    {name: row.folder for name, row in part.rows.items()}, examples=study.config.report.examples,
    sentences=sentences, tables=contents.tables, plots=contents.plots)


def define(values: flags.FlagValues) -> None:
  flags.DEFINE_string('workdir', None, 'Folder of the comparison.', flag_values=values)
  flags.DEFINE_list(
    'regimes', list(REGIMES), 'Rows of PRESETS in fedmedjax/experiment/presets.py, or api:MODEL.',
    flag_values=values)
  flags.DEFINE_list(
    'settings', ['in_domain'], f'Scenarios to run, any of {", ".join(SCENARIOS)}.',
    flag_values=values)
  flags.DEFINE_list('seeds', [], 'Seeds; none = config.seed alone.', flag_values=values)
  flags.DEFINE_list(
    'sizes', ['2', '4', '6', '8', '10'], 'Numbers of sites of the scenario scaling.',
    flag_values=values)
  flags.DEFINE_string(
    'new_site', '', 'The site of the scenario new_site, with training notes.', flag_values=values)
  flags.DEFINE_list(
    'sentences', ['0', '10', '50', '100', 'all'],
    'Numbers of training sentences of the site of --new_site.', flag_values=values)
  flags.DEFINE_integer(
    'epochs', 5, 'Epochs of the site of --new_site over its sentences; it takes no more steps than '
    'a site of the federation.', lower_bound=1, flag_values=values)


def _numbers(values: flags.FlagValues, name: str, least: int, words: dict[str, int]) -> list[int]:
  """The values of a list flag as integers; InputError unless they differ and are all allowed.

  Args:
    name: of the flag.
    least: smallest number that is allowed.
    words: words that stand for a number, such as {'all': -1}.
  """
  wanted = values[name].value
  allowed = f'different integers >= {least}{"".join(f" or {word}" for word in words)}'
  for text in wanted:
    if text not in words and not (text.isascii() and text.isdigit() and int(text) >= least):
      raise InputError(f'--{name}={",".join(wanted)}: {text!r}: {allowed} are allowed')
  numbers = [words.get(text, int(text) if text.isdigit() else 0) for text in wanted]
  if len(set(numbers)) < len(numbers):
    raise InputError(f'--{name}={",".join(wanted)}: {allowed} are allowed')
  return numbers


def main(argv: list[str]) -> int:
  def body():
    # Checked per regime: the config's own preset need not be among them.
    config, values, overrides = parse(argv, define, check=False)
    if not values.workdir:
      raise InputError('--workdir is missing: name a folder, such as --workdir=runs/compare')
    for name in values.settings:
      if name not in SCENARIOS:
        raise InputError(f'--settings: {name!r} is not one of {", ".join(SCENARIOS)}')
    if not values.settings:
      raise InputError(f'--settings is empty: any of {", ".join(SCENARIOS)} are allowed')
    study = study_of(config, Path(values.workdir), values, overrides)
    seeds = _numbers(values, 'seeds', 0, {}) or [config.seed]
    set_up()
    compare(study, values.settings, seeds, Reporter())

  return guarded(body)


def study_of(
  config: ConfigDict, workdir: Path, values: flags.FlagValues, overrides: dict
) -> Study:
  """The study that the flags ask for; `overrides` are the --config.KEY=... of the command line."""
  return Study(
    config, workdir, tuple(values.regimes), overrides,
    scaling=tuple(_numbers(values, 'sizes', 1, {})), new_site=values.new_site,
    sentences=tuple(_numbers(values, 'sentences', 0, {'all': -1})), epochs=values.epochs)


if __name__ == '__main__':
  sys.exit(main(sys.argv))

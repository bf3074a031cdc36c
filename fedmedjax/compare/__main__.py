"""Runs several regimes of one configuration with equal local steps and tabulates them.

    python -m fedmedjax.compare --config=fedmedjax:quickstart --workdir=runs/compare
      [--settings=in_domain,leave_one_out,scaling,new_site] [--seeds=42,43,44]

Each regime is a run of its own in WORKDIR/REGIME, so a stopped comparison resumes. Besides the
rows of PRESETS, FILE.py:FUNCTION is FedAvg with an aggregator of your own, and own:NAME the row of
your own that the configuration has chosen. api:MODEL asks a model behind an OpenAI-compatible
endpoint; its address and key come from OPENAI_BASE_URL and OPENAI_API_KEY, and `api` alone takes
its model from OPENAI_MODEL. The scenarios of --settings are in fedmedjax/compare/scenarios.py, the
sentences about differences in fedmedjax/compare/comparisons.py.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import ConfigDict

from fedmedjax.experiment.command_line import parse
from fedmedjax.runtime.cli import guarded, set_up
from fedmedjax.types import InputError

if TYPE_CHECKING:
  from fedmedjax.compare.rows import Study

REGIMES = ('zero_shot', 'single_site', 'centralised', 'fed_medlora', 'fed_medlora_plus')
# Names in scenarios.SCENARIOS, which imports too much for --help; a test holds both together.
SCENARIOS = ('in_domain', 'leave_one_out', 'scaling', 'new_site')


def define(values: flags.FlagValues) -> None:
  flags.DEFINE_string('workdir', None, 'Folder of the comparison.', flag_values=values)
  flags.DEFINE_list(
    'regimes', list(REGIMES),
    'Rows of PRESETS in fedmedjax/experiment/presets.py, centralised_depth (no more steps than one '
    'site takes), own:NAME or FILE.py:FUNCTION of your own, or api:MODEL.', flag_values=values)
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


def main(argv: Sequence[str] | None = None) -> int:
  """The program -> its exit status; `argv` is sys.argv where none is given."""
  argv = sys.argv if argv is None else argv

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
    # Imported here since they take seconds: --help and mistakes are answered before.
    from fedmedjax.compare.regimes import compare
    from fedmedjax.report import FILE
    from fedmedjax.runtime.progress import Reporter
    set_up()
    reporter = Reporter()
    compare(study, values.settings, seeds, reporter)
    reporter.say_unwrapped(f'report: {study.folder / FILE}')
    reporter.repeat_warnings()

  return guarded(body)


def study_of(
  config: ConfigDict, workdir: Path, values: flags.FlagValues, overrides: dict
) -> 'Study':
  """The study that the flags ask for; `overrides` are the --config.KEY=... of the command line."""
  from fedmedjax.compare.rows import Study
  return Study(
    config, workdir, tuple(values.regimes), overrides,
    scaling=tuple(_numbers(values, 'sizes', 1, {})), new_site=values.new_site,
    sentences=tuple(_numbers(values, 'sentences', 0, {'all': -1})), epochs=values.epochs)


if __name__ == '__main__':
  sys.exit(main())

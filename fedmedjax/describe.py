"""Says what the sites of a configuration hold and how they differ, before any training.

    python -m fedmedjax.describe --config=configs/quickstart.py [--output=runs/description]

Prints tables and leaves them with figures in the folder. Reads notes only: no model is loaded and
nothing is compiled.
"""

import sys
from pathlib import Path

from absl import flags

from fedmedjax.data.statistics import site_statistics
from fedmedjax.experiment.config import parse
from fedmedjax.experiment.notes import load_corpora
from fedmedjax.report.description import SHOWN, describe
from fedmedjax.runtime.cli import guarded
from fedmedjax.runtime.progress import Reporter
from fedmedjax.types import InputError


def define(values: flags.FlagValues) -> None:
  flags.DEFINE_string(
    'output', 'runs/description', "Folder for numbers and figures (JSON, SVG, PNG); '' = none.",
    flag_values=values)


def main(argv: list[str]) -> int:
  def body():
    config, values, _ = parse(argv, define)
    reporter = Reporter()
    with reporter.task('reading notes'):
      corpora = load_corpora(config)
    shown = (corpora.parts or corpora.sites)[:SHOWN]
    sites = [site_statistics(corpus) for corpus in (*shown, *corpora.external)]
    if corpora.skew:
      reporter.say(f'{config.data.partition.kind} partition: {corpora.skew}; the first '
                   f'{len(shown)} sites are shown')
    try:
      describe(sites, [corpus.name for corpus in corpora.external],
               Path(values.output) if values.output else None, reporter)
    except OSError as error:
      raise InputError(f'--output={values.output}: cannot be written: {error}') from None

  return guarded(body)


if __name__ == '__main__':
  sys.exit(main(sys.argv))

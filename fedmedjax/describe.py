"""Says what the sites of a configuration hold and how they differ, before any training.

    python -m fedmedjax.describe --config=fedmedjax:quickstart [--output=runs/description]

Prints tables and leaves them with figures in the folder. Reads notes only: no model is loaded and
nothing is compiled.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from fedmedjax.experiment.command_line import parse
from fedmedjax.runtime.cli import guarded, set_up
from fedmedjax.types import InputError


def define(values: flags.FlagValues) -> None:
  flags.DEFINE_string(
    'output', 'runs/description', "Folder for numbers and figures (JSON, SVG, PNG); '' = none.",
    flag_values=values)


def main(argv: Sequence[str] | None = None) -> int:
  """The program -> its exit status; `argv` is sys.argv where none is given."""
  argv = sys.argv if argv is None else argv

  def body():
    config, values, _ = parse(argv, define)
    # Imported here since they take seconds: --help and mistakes are answered before.
    from fedmedjax.data.statistics import lacking, site_statistics
    from fedmedjax.experiment.notes import load_corpora
    from fedmedjax.report.description import SHOWN, describe
    from fedmedjax.runtime.progress import Reporter
    set_up()
    reporter = Reporter()
    with reporter.task('reading notes'):
      corpora = load_corpora(config)
    for corpus in (*corpora.sites, *corpora.external, *corpora.server):
      if left_out := lacking(corpus.report):
        reporter.say_unwrapped(f'{corpus.name}: the schema lacks, and reading left out: {left_out}')
    shown = (corpora.parts or corpora.sites)[:SHOWN]
    sites = [site_statistics(corpus) for corpus in (*shown, *corpora.external, *corpora.server)]
    if corpora.skew:
      reporter.say(f'{config.data.partition.kind} partition: {corpora.skew}; the first '
                   f'{len(shown)} sites are shown')
    try:
      describe(sites, [corpus.name for corpus in corpora.external],
               Path(values.output) if values.output else None, reporter, corpora.schema)
    except OSError as error:
      raise InputError(f'--output={values.output}: cannot be written: {error}') from None

  return guarded(body)


if __name__ == '__main__':
  sys.exit(main())

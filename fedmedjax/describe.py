"""Says what the sites of a configuration hold and how they differ, before any training.

    python -m fedmedjax.describe --config=fedmedjax:quickstart [--output=runs/description]
    python -m fedmedjax.describe --text --workdir=runs/quickstart

Prints tables and leaves them with figures in the folder. Reads notes only: no model is loaded and
nothing is compiled. The second form lists the files of a run, a comparison or annotations that hold
words of notes, and changes nothing.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from fedmedjax.experiment.command_line import parse
from fedmedjax.runtime.cli import asks_help, guarded, read_flags, set_up
from fedmedjax.types import InputError


def define(values: flags.FlagValues) -> None:
  flags.DEFINE_string(
    'output', 'runs/description', "Folder for numbers and figures (JSON, SVG, PNG); '' = none.",
    flag_values=values)
  flags.DEFINE_bool(
    'text', False, 'List the files in --workdir that hold words of notes; without --config.',
    flag_values=values)
  flags.DEFINE_string('workdir', None, 'Folder that --text looks into.', flag_values=values)


def main(argv: Sequence[str] | None = None) -> int:
  """The program -> its exit status; `argv` is sys.argv where none is given."""
  argv = sys.argv if argv is None else argv
  named = {word.lstrip('-').partition('=')[0] for word in argv[1:] if word.startswith('-')}
  if 'text' in named and not asks_help(argv):
    return guarded(lambda: _list_text(argv, named))
  return guarded(lambda: _describe(argv))


def _list_text(argv: Sequence[str], named: set[str]) -> None:
  """Prints the files that hold words of notes; `named` are the flags of the command line."""
  for name in sorted(named):
    if name == 'output' or name.partition('.')[0] == 'config':
      raise InputError(f'--{name}: --text looks at the files of --workdir alone; leave out one')
  values = read_flags(argv, define, needed=('text', 'workdir'))
  from fedmedjax.store.words import files_with_words, shown
  workdir = Path(values.workdir)
  found, count = files_with_words(workdir)
  for path, why in found:
    print(f'{shown(path)}: {why}')
  said = {0: f'none of {count} files holds', 1: f'1 of {count} files holds'}.get(
    len(found), f'{len(found)} of {count} files hold')
  print(f'{shown(workdir)}: {said} words of notes')


def _describe(argv: Sequence[str]) -> None:
  config, values, _ = parse(argv, define)
  if values.workdir:
    raise InputError(f'--workdir={values.workdir}: goes with --text')
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
    rows = any(note.target is not None for corpus in shown for note in corpus.train)
    dealt = corpora.skew.told('targets') if rows else corpora.skew
    reporter.say(f'{config.data.partition.kind} partition: {dealt}; the first {len(shown)} sites '
                 'are shown')
  try:
    describe(sites, [corpus.name for corpus in corpora.external],
             Path(values.output) if values.output else None, reporter, corpora.schema)
  except OSError as error:
    raise InputError(f'--output={values.output}: cannot be written: {error}') from None


if __name__ == '__main__':
  sys.exit(main())

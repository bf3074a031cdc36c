"""Attacks a finished run and says what its adapter gives away about the notes it was trained on.

    python -m fedmedjax.audit --workdir=runs/quickstart

For any run of a language model's adapter or of the word tagger, with differential privacy or
without: membership inference by loss on training against test notes; and where canaries were
planted (config.privacy.canaries), how well their identifiers are known, and a lower bound of
epsilon. Prints tables, writes audit.json and adds a section to report.html. Trains nothing.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from fedmedjax.runtime.cli import guarded, read_flags, set_up


def define(values: flags.FlagValues) -> None:
  flags.DEFINE_string('workdir', None, 'Folder of a finished run.', flag_values=values)
  flags.DEFINE_integer(
    'examples', 0, 'Examples of each site and task that are attacked, at random, trained on and '
    'not; 0 = all.', lower_bound=0, flag_values=values)


def main(argv: Sequence[str] | None = None) -> int:
  """The program -> its exit status; `argv` is sys.argv where none is given."""
  argv = sys.argv if argv is None else argv

  def body():
    values = read_flags(argv, define, needed=('workdir',))
    # Imported here since they take seconds: --help and mistakes are answered before.
    from fedmedjax import report
    from fedmedjax.audit.program import audit
    from fedmedjax.experiment.recorded import recorded_config
    from fedmedjax.experiment.stored import quoted_sentences
    from fedmedjax.report.audit import tables
    from fedmedjax.runtime.progress import Reporter
    set_up()
    workdir, reporter = Path(values.workdir), Reporter()
    reporter.say(
      f'auditing {workdir}: losses of its notes by its adapter and by the model before training; '
      'on a CPU this takes minutes')
    result = audit(workdir, reporter, values.examples)
    for shown in tables(result):
      reporter.say(shown)
    report.freshen(workdir, quoted_sentences(recorded_config(workdir)))
    reporter.say_unwrapped(
      f'audit: {workdir / "audit.json"}; {workdir / report.FILE} has a section on it now')
    reporter.repeat_warnings()

  return guarded(body)


if __name__ == '__main__':
  sys.exit(main())

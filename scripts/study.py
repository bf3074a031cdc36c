"""Carries out the study unit by unit, and makes the tables of docs/results.md of its rows.

    python scripts/study.py r1 r2 r3 r4 r5 r6 ncbi privacy [--minutes=120] [--tables]
    python scripts/study.py r1 --list

Each finished unit (a regime with a seed) appends a row to docs/results/NAME.jsonl; a unit that has
a row is skipped, and one that was killed goes on from its last round. --tables makes the tables
anew, alone or after the units. Runs are in the folder RUNS of the environment (default runs).
"""

import argparse
import os
import sys
from pathlib import Path

# Before numpy, as in ablation.py.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

from fedmedjax.runtime.cli import guarded, set_up
from fedmedjax.types import InputError

# r3 is a table of r1's rows.
NAMES = ('r1', 'r2', 'r3', 'r4', 'r5', 'r6', 'ncbi', 'privacy')
ROOT = Path(__file__).resolve().parents[1]


def options(argv: list[str]) -> argparse.Namespace:
  """The command line; raises InputError for names and numbers that are not allowed."""
  parser = argparse.ArgumentParser(
    prog='reproduce', description=__doc__.split('\n\n')[0], exit_on_error=False)
  parser.add_argument('names', nargs='*', help=f'any of {", ".join(NAMES)}')
  parser.add_argument('--list', action='store_true', help='units done and to do, with hours')
  parser.add_argument('--tables', action='store_true', help='make docs/results.md anew')
  parser.add_argument('--minutes', default='0', help='start no unit after so many; 0 = no limit')
  found, unknown = parser.parse_known_args(argv)
  for word in unknown:
    raise InputError(f'{word}: --list, --tables and --minutes=N are allowed')
  for name in found.names:
    if name not in NAMES:
      raise InputError(f'{name!r} is not one of {", ".join(NAMES)}')
  try:
    found.minutes = float(found.minutes)
    assert 0 <= found.minutes < float('inf')
  except (ValueError, AssertionError):
    raise InputError(f'--minutes={found.minutes}: a number >= 0 is allowed') from None
  if not found.names and not found.tables:
    found.names = list(NAMES)
  return found


def main(argv: list[str]) -> int:
  def body() -> None:
    chosen = options(argv)
    # Imported here since they take seconds: mistakes are answered before.
    from privacy_curve import with_figures

    from fedmedjax.compare import study, study_tables
    from fedmedjax.compare.study_units import units
    from fedmedjax.runtime.progress import Reporter
    paths = study.Paths(
      ROOT, ROOT / 'docs' / 'results', Path(os.environ.get('RUNS') or 'runs'))
    # R3 has R1's units: each once.
    named = (with_figures(unit) for name in chosen.names for unit in units(name, paths.runs))
    wanted = [*{str(unit): unit for unit in named}.values()]
    if chosen.list:
      print(study.listing(wanted, paths))
      return
    reporter = Reporter()
    if wanted:
      set_up()
      study.carry_out(wanted, paths, reporter, minutes=chosen.minutes)
    if chosen.tables:
      page = ROOT / 'docs' / 'results.md'
      page.write_text(study_tables.filled(page.read_text(), paths.results))
      reporter.say(f'{page}: tables made anew')

  return guarded(body)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))

"""Trains a grid of runs as few programs: every point is a run as `main` would make it.

    python -m fedmedjax.sweep --config=fedmedjax:ablation --workdir=runs/rates
      --grid='fed.preset=fed_medlora,fed_medlora_peer;optim.learning_rate=5e-3,1e-2;seed=0..9'
    python -m fedmedjax.sweep --config=fedmedjax:ablation --workdir=runs/search --latin=32
      --grid='optim.learning_rate=1e-3~1e-1;seed=0..2' [--halving=3,6 --keep=0.5]

Axes are parted by ';', values by ','. FIRST..LAST counts, both included; LOW~HIGH is a range, drawn
evenly by its logarithm (LOW~HIGH:linear: by its value). fed.preset applies the row of the method,
before all other keys (all: every one that trains a LoRA); setting=iid,types,... are kinds of
heterogeneity and damage of five sites, and --axes names more of the kind. Each run is a folder
WORKDIR/runs/NAME. The same command goes on where it was stopped; another grid adds runs. The exit
status is 1 where a run failed.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Before numpy: LAPACK's threads wait for each other so long that FlexLoRA takes ten times as long.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

from absl import flags

from fedmedjax.experiment.command_line import parse
from fedmedjax.runtime.cli import guarded, set_up
from fedmedjax.types import InputError


def define(values: flags.FlagValues) -> None:
  flags.DEFINE_string('workdir', None, 'Folder of the sweep.', flag_values=values)
  flags.DEFINE_string('grid', '', 'KEY=VALUES;KEY=VALUES, see above.', flag_values=values)
  flags.DEFINE_string(
    'axes', '', 'TOML file of axes that change several keys at once: [AXIS.VALUE] above lines '
    '"KEY" = VALUE.', flag_values=values)
  flags.DEFINE_integer(
    'random', 0, 'Points drawn from the ranges, crossed with the lists.', 0, flag_values=values)
  flags.DEFINE_integer(
    'latin', 0, 'The same, as a Latin hypercube.', 0, flag_values=values)
  flags.DEFINE_integer('draws', 0, 'Seed of what is drawn.', 0, flag_values=values)
  flags.DEFINE_list(
    'halving', [], 'Rounds after which only the choices of lowest validation loss go on.',
    flag_values=values)
  flags.DEFINE_float('keep', 0.5, 'The share of them that does.', flag_values=values)
  flags.DEFINE_integer(
    'runs', 0, 'The most runs that are stacked; 0 = 16 on a CPU, else 64.', 0, flag_values=values)
  flags.DEFINE_integer(
    'parallel', 0, 'Programs at the same time; 0 = one a core of a CPU, up to 8, else 1.', 0,
    flag_values=values)
  flags.DEFINE_bool(
    'skip_refused', False, 'Leave out runs that are refused, rather than all.', flag_values=values)
  flags.DEFINE_bool(
    'validate_only', False, 'Check everything, print the plan, and write nothing.',
    flag_values=values)


def main(argv: Sequence[str] | None = None) -> int:
  """The program -> its exit status; `argv` is sys.argv where none is given."""
  argv = sys.argv if argv is None else argv

  def body():
    # Checked run by run: the configuration alone need not be one.
    config, values, given = parse(argv, define, check=False)
    if not values.workdir:
      raise InputError('--workdir is missing: name a folder, such as --workdir=runs/sweep')
    # Imported here since they take seconds: --help and mistakes in flags are answered before.
    from fedmedjax.experiment.config import leaves
    from fedmedjax.runtime.phrases import many
    from fedmedjax.runtime.progress import Reporter
    from fedmedjax.store.results import PROGRAM
    from fedmedjax.sweep.grid import points, read_grid
    from fedmedjax.sweep.runs import FAILED, FILE, named_axes
    named = named_axes(Path(values.axes) if values.axes else None)
    axes = read_grid(values.grid, leaves(config.to_dict()), named)
    drawn = points(axes, values.random, values.latin, values.draws)
    if not all(word.isascii() and word.isdigit() for word in values.halving):
      raise InputError(f'--halving={",".join(values.halving)}: numbers of rounds are allowed')
    reporter = Reporter()
    reporter.say('loading JAX ...')
    from fedmedjax.sweep.engine import Asked, sweep
    set_up()
    counts = sweep(Asked(
      config, given, axes, drawn, named, (*PROGRAM, *argv[1:]), tuple(map(int, values.halving)),
      values.keep, values.runs, values.parallel, values.skip_refused, values.validate_only),
      Path(values.workdir), reporter)
    reporter.repeat_warnings()
    if counts[FAILED]:
      raise RuntimeError(
        f'{counts[FAILED]} of {many(counts.total(), "run")}; {Path(values.workdir) / FILE} says '
        'why, and the same command tries them again')

  return guarded(body)


if __name__ == '__main__':
  sys.exit(main())

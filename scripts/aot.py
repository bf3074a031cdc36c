"""Compiles a run's program for accelerators that are not there, and says what it needs.

    bash scripts/aot_environment.sh                     # once: .venv-aot, Python 3.12 or newer
    .venv-aot/bin/python scripts/aot.py --topology=h100:1 --config=configs/llama31_8b.py \\
      [--config.KEY=...] [--sites=8] [--program=round|validate|decode] [--top=10] [--dump=FOLDER]
      [--runs=64 --runs_at_once=8] [--estimate]
    .venv-aot/bin/python scripts/aot.py --table --out=docs/aot.jsonl [--only=h100] [--minutes=60] \\
      [--page=docs/accelerators.md] [--estimates]

Topologies: v5e:1x1, v5e:2x4, v5p:1x1x1, v5p:2x2x1, v6e:..., h100:1, h100:8; a run takes those of
them that config.mesh asks for. Nothing is run: weights are shapes, no answer is checked, no time is
measured. GiB are those of one device. FLOP and bytes are XLA's, which counts a loop's body once.
On a TPU the temporaries that the compiler reserves are more than its own account of what is alive
(peak); both are told. --table compiles the rows that --out lacks, each in a process of its own;
--estimates makes the planner's estimates of the rounds that it has anew, and compiles nothing.
"""

import json
import sys
import tempfile
from pathlib import Path

from absl import flags

from absent import devices, page, table
from fedmedjax.experiment.command_line import parse
from fedmedjax.runtime.cli import guarded, read_flags
from fedmedjax.types import InputError

PROGRAMS = ('round', 'validate', 'decode')
# Pattern of the names that XLA has for them.
_MODULES = 'round_fn|rounds|validate|generate'


def define(values: flags.FlagValues) -> None:
  flags.DEFINE_string('topology', None, 'Kind of device and shape.', flag_values=values)
  flags.DEFINE_integer(
    'sites', 0, "The notes are dealt out to so many, alike; 0 = the configuration's sites.",
    lower_bound=0, flag_values=values)
  flags.DEFINE_integer(
    'runs', 1, 'Runs whose rounds are one program, as in a sweep.', lower_bound=1,
    flag_values=values)
  flags.DEFINE_integer(
    'runs_at_once', 0, 'Of them, how many are computed together; 0 = all.', lower_bound=0,
    flag_values=values)
  flags.DEFINE_enum('program', 'round', PROGRAMS, 'What is compiled.', flag_values=values)
  flags.DEFINE_string(
    'gpu_target', None, "XLA's description of another card (GpuTargetConfigProto, text).",
    flag_values=values)
  flags.DEFINE_bool(
    'estimate', False, "The planner's estimate alone; nothing is compiled.", flag_values=values)
  flags.DEFINE_integer('top', 10, 'Buffers that are told.', lower_bound=0, flag_values=values)
  flags.DEFINE_string('dump', None, "Folder that XLA's own files stay in.", flag_values=values)
  flags.DEFINE_string('json', None, 'File that the row is written to, too.', flag_values=values)


def define_table(values: flags.FlagValues) -> None:
  flags.DEFINE_bool('table', False, 'Compile all rows of the table.', flag_values=values)
  flags.DEFINE_string('out', None, 'File of the rows, one a line.', flag_values=values)
  flags.DEFINE_string(
    'only', '', 'Rows whose name has this in it only; a comma between several.', flag_values=values)
  flags.DEFINE_float(
    'minutes', 0.0, 'Begin no row later; 0 = no limit.', lower_bound=0.0, flag_values=values)
  flags.DEFINE_string(
    'page', None, 'Page whose tables are made anew of the rows, at the end.', flag_values=values)
  flags.DEFINE_bool(
    'estimates', False, 'Make the estimates of recorded rounds anew.', flag_values=values)
  flags.DEFINE_bool('list', False, 'Only name the rows that are missing.', flag_values=values)


def one(argv: list[str]) -> None:
  """Compiles the program that the command line names."""
  config, values, _ = parse(argv, define, check=False)
  if not values.topology:
    raise InputError('--topology is missing: such as h100:1 or v5e:2x4')
  topology = devices.topology(values.topology)
  if values.estimate and values.program != 'round':
    raise InputError(f'--estimate: the planner estimates rounds, not --program={values.program}')
  if values.json and not Path(values.json).absolute().parent.is_dir():
    raise InputError(f'--json={values.json}: its folder is not there')
  with tempfile.TemporaryDirectory() as scratch:
    dump = Path(values.dump or scratch)
    if values.dump and dump.exists() and not dump.is_dir() or any(dump.glob('*')):
      raise InputError(f'--dump={dump}: an empty folder is allowed')
    devices.prepare_environment(topology, dump, _MODULES)
    # Imported here, since JAX reads its environment when it is imported.
    from absent import compiled
    from fedmedjax.experiment.config import validate
    compiled.with_sites(config, values.sites)
    validate(config)
    found = devices.devices(topology, values.gpu_target and Path(values.gpu_target))
    row = compiled.compiled_row(
      compiled.Asked(
        topology, config, values.program, found, dump, values.top, values.runs,
        values.runs_at_once, values.estimate), print)
  print(compiled.shown(row))
  if values.json:
    Path(values.json).write_text(json.dumps(row) + '\n')


def main(argv: list[str]) -> int:
  def body():
    if not any(word.lstrip('-').split('=')[0] == 'table' for word in argv):
      one(argv)
      return
    values = read_flags(argv, define_table, ('out',))
    if not values.table:
      raise InputError('--table=false: leave it out, and name a --topology')
    if values.estimates and (values.list or values.minutes):
      raise InputError('--estimates: without --list and --minutes, which are of compiling')
    only = tuple(filter(None, values.only.split(',')))
    if values.page:
      page.around(Path(values.page))  # rows take hours
    try:
      if values.estimates:
        table.estimate_anew(Path(__file__), Path(values.out), only, print)
        return
      table.compile_missing(
        Path(__file__), Path(values.out), only, values.minutes, values.list, print)
    finally:
      if values.page:
        page.fill(Path(values.page), table.read(Path(values.out)))

  return guarded(body)


if __name__ == '__main__':
  sys.exit(main(sys.argv))

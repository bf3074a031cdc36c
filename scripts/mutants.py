"""Mutation test: makes small errors in the code, one at a time, and asks whether a test fails.

What is tried: fedmedjax/fed with its folders, fedmedjax/eval, and of fedmedjax/data what orders,
packs and groups the steps.
cosmic-ray makes the errors. Here is what it lacks: a spread of them over a time budget, and for
each error only the tests that execute its line, as many as --seconds allow. They run in a fork of
a process that has imported every library but not our code, in a copy of the tree, with the
compilations of the sound code at hand. A test that fails, or takes far too long, kills the mutant.

usage: bash scripts/mutants.sh [--minutes=60] [--seed=0] [--seconds=30] [FILE[:LINE] ...]
Prints every survivor with its difference, and last `survivors: N of M`, M being the mutants tried.
"""

import argparse
import ast
import contextlib
import difflib
import importlib
import itertools
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
# What is tried, a file or a folder with all in it -> the tests that may see it.
TARGETS = {
  'fedmedjax/fed': 'tests/fed', 'fedmedjax/data/schedule.py': 'tests/data/schedule_test.py',
  'fedmedjax/data/pack.py': 'tests/data/pack_test.py',
  'fedmedjax/data/step_order.py': 'tests/data/pack_test.py',
  'fedmedjax/data/groups.py': 'tests/data/groups_test.py', 'fedmedjax/eval': 'tests/eval'}
# What the tests and their conftest.py need of the tree.
COPIED = ('fedmedjax', 'configs', 'tests', 'pyproject.toml')
# Errors that Python itself reports, such as a shift of floats, or that change nothing but identity.
ARITHMETIC, BITWISE = '(Add|Sub|Mul|Div|FloorDiv|Mod|Pow)', '(RShift|LShift|BitOr|BitAnd|BitXor)'
EXCLUDED = re.compile(
  f'core/ReplaceBinaryOperator_({ARITHMETIC}_{BITWISE}|{BITWISE}_{ARITHMETIC})$'
  '|core/ReplaceComparisonOperator_(?!Is)[A-Za-z]+_Is(Not)?$'
  '|core/ReplaceComparisonOperator_(Is_Eq|IsNot_NotEq)$')
FORK = multiprocessing.get_context('fork')


class Mutant(NamedTuple):
  """One error."""

  path: str       # of the file, from the root
  place: tuple    # (line, column) where it begins
  operator: str   # cosmic-ray's name
  code: str       # the whole file


class Baseline(NamedTuple):
  """What the tests did on the sound code."""

  seconds: dict   # test -> seconds
  contexts: dict  # (path, line) -> tests that execute it; '' = on import, a folder or file = its


class Recorder:
  """Tells coverage which test runs, and keeps the time of each. A plugin of pytest."""

  def __init__(self, coverage):
    self.coverage, self.seconds = coverage, defaultdict(float)

  def pytest_runtest_protocol(self, item):
    import jax
    # A function that an earlier test has traced would not be seen to run in this one.
    jax.clear_caches()
    self.coverage.switch_context(item.nodeid)

  def pytest_fixture_setup(self, fixturedef):
    # What several tests share is not the first one's alone.
    if fixturedef.scope != 'function':
      self.coverage.switch_context(fixturedef.baseid or 'tests')

  def pytest_runtest_call(self, item):
    self.coverage.switch_context(item.nodeid)

  def pytest_runtest_logreport(self, report):
    self.seconds[report.nodeid] += report.duration


def mutants(path: str) -> list[Mutant]:
  """All errors that cosmic-ray can make in a file, without repetition and those of no effect."""
  from cosmic_ray.ast import ast_nodes, get_ast
  from cosmic_ray.mutating import mutate_code
  from cosmic_ray.plugins import get_operator, operator_names

  source = Path(path).read_text()
  nodes = list(ast_nodes(get_ast(source)))
  seen, found = {meaning(source)}, []
  for name in operator_names():
    if EXCLUDED.match(name) or get_operator(name).arguments():
      continue
    operator = get_operator(name)()
    places = [start for node in nodes for start, _ in operator.mutation_positions(node)]
    for number, place in enumerate(places):
      try:
        code = mutate_code(source, operator, number)
      except AttributeError:  # cosmic-ray cannot replace an exception with a dot in its name
        continue
      dump = meaning(code)
      if dump is not None and dump not in seen:
        seen.add(dump)
        found.append(Mutant(path, place, name, code))
  return found


def selected(places: list[str]) -> list[Mutant]:
  """The mutants of FILE or FILE:LINE, or of all files."""
  found = []
  every = sorted(
    str(path) for target in TARGETS for path in (
      Path(target).rglob('*.py') if Path(target).is_dir() else [Path(target)]))
  for place in places or every:
    path, _, line = place.partition(':')
    found += [mutant for mutant in mutants(path) if not line or mutant.place[0] == int(line)]
  return found


def tests_of(places: list[str]) -> list[str]:
  """The tests that may see FILE or FILE:LINE, or all."""
  return list(dict.fromkeys(
    tests for target, tests in TARGETS.items() if not places or any(
      place == target or place.startswith((f'{target}/', f'{target}:')) for place in places)))


def meaning(source: str) -> str | None:
  """The syntax tree without layout, docstrings, annotations and the kinds of parameters.

  None if it is not Python.
  """
  try:
    tree = ast.parse(source)
  except SyntaxError:
    return None
  for node in ast.walk(tree):
    for field in ('annotation', 'returns'):
      if hasattr(node, field):
        setattr(node, field, None)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
      node.value = ast.Constant(None)
    if isinstance(node, ast.arguments):
      node.args = node.posonlyargs + node.args + node.kwonlyargs
      node.defaults += [default for default in node.kw_defaults if default]
      node.posonlyargs = node.kwonlyargs = node.kw_defaults = []
  return ast.dump(tree)


def spread(found: list[Mutant], seed: int) -> list[Mutant]:
  """In an order of which every beginning is spread: each place once, then each twice, ..."""
  rng = random.Random(seed)
  rounds = defaultdict(list)
  places = defaultdict(int)
  for mutant in rng.sample(found, len(found)):
    rounds[places[mutant.path, mutant.place]].append(mutant)
    places[mutant.path, mutant.place] += 1
  return [mutant for number in sorted(rounds) for mutant in rounds[number]]


def pytest_run(arguments, plugins=()) -> int:
  """pytest's exit status; in a fork, silently."""
  import pytest
  with open(os.devnull, 'w') as silence:
    os.dup2(silence.fileno(), 1)
    os.dup2(silence.fileno(), 2)
  # Pytest would rather import hypothesis itself.
  quiet = 'ignore:Module already imported:pytest.PytestAssertRewriteWarning'
  return pytest.main(
    ['-x', '-p', 'no:cacheprovider', '-W', quiet, *arguments], plugins=list(plugins))


def baseline_run(answer, tests):
  """Sends back (pytest's status, Baseline, modules of libraries) of the sound tree."""
  import coverage
  recording = coverage.Coverage(
    data_file=None, config_file=False,
    include=[f'{target}/*' if Path(target).is_dir() else target for target in TARGETS])
  recording.start()
  recorder = Recorder(recording)
  status = pytest_run(tests, [recorder])
  recording.stop()
  contexts, here = {}, os.getcwd()
  data = recording.get_data()
  for file in data.measured_files():
    for line, tests in data.contexts_by_lineno(file).items():
      contexts[os.path.relpath(file, here), line] = set(tests)
  libraries = [
    name for name, module in sys.modules.items()
    if not (getattr(module, '__file__', None) or here).startswith(here)]
  answer.send((int(status), Baseline(dict(recorder.seconds), contexts), libraries))


def mutant_run(tests):
  """Exits with pytest's status; compilations of mutants are not kept."""
  import jax
  sys.dont_write_bytecode = True
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 1e9)
  os._exit(pytest_run(tests))


def concerned(mutant: Mutant, baseline: Baseline, seconds: float) -> list[str]:
  """The tests that execute the mutant's line, the short ones first: they are the sharp ones, too.

  Of a line that is executed on import they are followed by all tests of its file and then by the
  others. As many as take the given seconds together on the sound code, and at least one.
  """

  def tests_in(contexts: set[str]) -> list[str]:
    """By their seconds."""
    return sorted((
      test for test in baseline.seconds
      if any(test == context or test.startswith((f'{context}::', f'{context}/'))
             for context in contexts)), key=baseline.seconds.get)

  contexts = baseline.contexts.get((mutant.path, mutant.place[0]), set())
  chosen = tests_in(contexts - {''})
  if '' in contexts:
    of_file = set().union(*(
      tests for (path, _), tests in baseline.contexts.items() if path == mutant.path)) - {''}
    chosen += [*tests_in(of_file), *sorted(baseline.seconds, key=baseline.seconds.get)]
    chosen = list(dict.fromkeys(chosen))
  before = itertools.accumulate((baseline.seconds[test] for test in chosen), initial=0.0)
  return [test for test, passed in zip(chosen, before, strict=False) if passed < seconds]


def pass_in_fork(tests: list[str], seconds: dict) -> bool:
  """Whether the tests pass in the tree as it stands, and in a time that is no multiple of usual."""
  process = FORK.Process(target=mutant_run, args=(tests,))
  process.start()
  try:
    process.join(20 + 4 * sum(seconds[test] for test in tests))
    return process.exitcode == 0
  finally:
    process.kill()
    process.join()


def survives(mutant: Mutant, tests: list[str], seconds: dict) -> bool:
  """A line that no test executes lets every error live."""
  path = Path(mutant.path)
  sound = path.read_text()
  path.write_text(mutant.code)
  try:
    return not tests or pass_in_fork(tests, seconds)
  finally:
    path.write_text(sound)


def difference(mutant: Mutant) -> str:
  lines = difflib.unified_diff(
    Path(mutant.path).read_text().splitlines(), mutant.code.splitlines(), lineterm='', n=0)
  return '\n'.join(f'  {line}' for line in list(lines)[3:])


def sound_run(order: Callable, tests: list[str]) -> tuple[Baseline | None, list[Mutant]]:
  """Baseline, or None if the tests fail; and order(), worked out meanwhile."""
  ours, theirs = FORK.Pipe(duplex=False)
  process = FORK.Process(target=baseline_run, args=(theirs, tests), daemon=True)
  process.start()
  theirs.close()
  found = order()
  try:
    status, baseline, libraries = ours.recv()
  except EOFError:
    return None, found
  process.join()
  for name in libraries:
    # One that cannot be imported by itself is left to the tests.
    with contextlib.suppress(Exception):
      importlib.import_module(name)
  return None if status else baseline, found


def trial(options, deadline: float) -> int:
  """In the copy, which is the working directory."""
  begin = time.monotonic()
  tests = tests_of(options.places)
  baseline, order = sound_run(lambda: spread(selected(options.places), options.seed), tests)
  quickest = {} if baseline is None else {
    # The last one of a file is kept.
    test.split('::')[0]: test
    for test in sorted(baseline.seconds, key=baseline.seconds.get, reverse=True)}
  if baseline is None or not pass_in_fork(list(quickest.values()), baseline.seconds):
    print(
      f'error: tests fail without any mutant: python -m pytest {" ".join(tests)}', file=sys.stderr)
    return 1
  files, places = {mutant.path for mutant in order}, {mutant[:2] for mutant in order}
  print(
    f'{len(order)} mutants at {len(places)} places of {len(files)} files; '
    f'{len(baseline.seconds)} tests pass without them, in {time.monotonic() - begin:.0f} s',
    flush=True)
  tried, survivors = [], []
  for mutant in order:
    if time.monotonic() > deadline:
      break
    tried.append(mutant)
    if len(tried) % 100 == 0:
      print(f'\n... {len(tried)} tried', flush=True)
    tests = concerned(mutant, baseline, options.seconds)
    if survives(mutant, tests, baseline.seconds):
      survivors.append(mutant)
      print(
        f'\n{mutant.path}:{mutant.place[0]} {mutant.operator.removeprefix("core/")}, '
        f'{len(tests)} tests\n{difference(mutant)}', flush=True)
  print(
    f'\ntried {len(tried)} of {len(order)} mutants at {len({m[:2] for m in tried})} of '
    f'{len(places)} places, seed {options.seed}, in {(time.monotonic() - begin) / 60:.1f} minutes')
  print(f'survivors: {len(survivors)} of {len(tried)}')
  return 0


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--minutes', type=float, default=60, help='time budget (default 60)')
  parser.add_argument('--seed', type=int, default=0, help='of the spread (default 0)')
  parser.add_argument(
    '--seconds', type=float, default=30, help='of tests that a mutant meets (default 30)')
  parser.add_argument(
    'places', nargs='*', metavar='FILE[:LINE]',
    help=f'what to mutate (default: all of {", ".join(TARGETS)})')
  options = parser.parse_args()
  for place in options.places:
    path = place.partition(':')[0]
    if not (tests_of([path]) and (ROOT / path).is_file()):
      parser.error(f'{place}: FILE is to be in one of {", ".join(TARGETS)}')
  deadline = time.monotonic() + 60 * options.minutes
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  with tempfile.TemporaryDirectory(prefix='mutants') as folder:
    copy = Path(folder, 'tree')
    copy.mkdir()
    for name in COPIED:
      source = ROOT / name
      if source.is_dir():
        shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns('__pycache__'))
      else:
        shutil.copy2(source, copy / name)
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', f'{folder}/cache')
    os.environ |= {
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
    os.chdir(copy)
    sys.path[0] = str(copy)
    try:
      return trial(options, deadline)
    except KeyboardInterrupt:
      return 130


if __name__ == '__main__':
  sys.exit(main())

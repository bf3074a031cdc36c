"""What a second run of one configuration compiles, in processes of their own: nothing."""

import json
import logging
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

# All that a run may do: answers before, between and after rounds, teacher forcing, validation.
RUN = (
  '--config=configs/quickstart.py', '--config.data.sites=("synthetic_icu",)',
  '--config.data.external=()', '--config.data.synthetic_notes=6', '--config.data.max_length=400',
  '--config.data.validation_examples=1', '--config.fed.rounds=2', '--config.fed.local_steps=2',
  '--config.fed.batch_size=1', '--config.lora.rank=2', '--config.lora.targets=("q_proj","v_proj")',
  '--config.eval.max_examples=1', '--config.eval.max_zero_shot=1', '--config.eval.every=1',
  '--config.eval.teacher_forced=True', '--config.eval.max_new_ratio=0.02',
  '--config.eval.batch_size=1', '--config.eval.guesses=0', '--config.eval.bootstrap_samples=5')


RUNS = {
  'first': [], 'second': [], 'with_callback': ['--config.log.steps=True']}


def _runs(names, model: str, folder: Path) -> list[dict]:
  """What each of RUNS asked of one compilation cache, which is empty before the first."""
  environment = {
    key: value for key, value in os.environ.items()
    if not key.startswith(('JAX_COMPILATION_CACHE', 'JAX_PERSISTENT_CACHE'))}
  root = Path(__file__).parents[2]
  done = subprocess.run(
    [sys.executable, __file__, model, folder, *names], cwd=root, capture_output=True, text=True,
    env=environment | {
      'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache'), 'PYTHONPATH': str(root)})
  assert done.returncode == 0, done.stderr[-2000:]
  return [json.loads((folder / f'{name}.json').read_text()) for name in names]


def test_a_second_run_compiles_nothing(tiny_folder, tmp_path):
  first, second = _runs(('first', 'second'), tiny_folder, tmp_path)
  assert len(first['missed']) > 20 and 'jit_round_fn' in first['missed']
  assert second['missed'] == []
  assert second['hits'] == second['requests'] == first['requests']
  summaries, lines, adapters = zip(
    *(_written(tmp_path / name) for name in ('first', 'second')), strict=True)
  assert adapters[0] == adapters[1] and lines[0] == lines[1]
  assert summaries[1]['compile_seconds'] < 0.25 * summaries[0]['compile_seconds']


@pytest.mark.slow
def test_a_callback_for_every_step_changes_no_number(tiny_folder, tmp_path):
  """It keeps the round, and only that, out of the cache, and tells the loss of every step."""
  _, found = _runs(('first', 'with_callback'), tiny_folder, tmp_path)
  assert found['missed'] == ['jit_round_fn']
  _, lines, adapters = zip(
    *(_written(tmp_path / name) for name in ('first', 'with_callback')), strict=True)
  assert adapters[0] == adapters[1] and lines[0] == lines[1]
  # Without a callback nobody knows the loss of a step before its round has ended.
  said = [(tmp_path / f'{name}.txt').read_text() for name in ('first', 'with_callback')]
  assert [len(re.findall(r'^round 1/2: 2/2, .* loss [0-9.]+$', text, re.M)) for text in said] == [
    0, 1]


def _written(run: Path) -> tuple[dict, list[dict], bytes]:
  """The summary, the lines of all rounds without their seconds, and the trained weights."""
  lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
  for line in lines:
    del line['seconds']
  return (
    json.loads((run / 'summary.json').read_text()), lines,
    (run / 'adapter' / 'adapter_model.safetensors').read_bytes())


def _counted_run(model: str, folder: Path, name: str, more: list[str]) -> None:
  """Runs `main`; writes what it asked of the compilation cache, and what it printed."""
  import jax

  from fedmedjax import main
  counts, missed = Counter(), []
  jax.monitoring.register_event_listener(lambda event, **_: counts.update([event]))

  class Misses(logging.Handler):
    def emit(self, record):
      missed.extend(re.findall(r"CACHE MISS for '(\w+)'", record.getMessage()))

  logger = logging.getLogger('jax._src.compiler')
  logger.setLevel(logging.DEBUG)
  logger.addHandler(Misses())
  logger.propagate = False
  with (folder / f'{name}.txt').open('w') as sys.stdout:
    status = main.main(
      ['fedmedjax', *RUN, f'--config.model.path={model}', f'--workdir={folder / name}', *more])
    sys.stdout.flush()
  cache = '/jax/compilation_cache'
  (folder / f'{name}.json').write_text(json.dumps({
    'missed': missed, 'hits': counts[f'{cache}/cache_hits'],
    'requests': counts[f'{cache}/compile_requests_use_cache']}))
  os._exit(status)


def _one_after_the_other(model: str, folder: Path, names: list[str]) -> None:
  """In processes of their own, for which what a run imports is imported once."""
  import jax  # noqa: F401

  from fedmedjax.experiment import build  # noqa: F401
  from fedmedjax.train import run  # noqa: F401
  for name in names:
    if not (child := os.fork()):
      _counted_run(model, folder, name, RUNS[name])
    assert os.waitpid(child, 0)[1] == 0, name


if __name__ == '__main__':
  _one_after_the_other(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])

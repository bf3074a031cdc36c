"""The planner's estimate of memory against what compilers said, in the rows of docs/aot.jsonl."""

import sys
from pathlib import Path

import jax
import pytest

from fedmedjax.experiment import device_share
from fedmedjax.experiment.config import validate
from fedmedjax.experiment.config_file import load_config_file
from fedmedjax.experiment.execution import Execution
from fedmedjax.train import estimates

sys.path.insert(0, str(Path(__file__).parents[2] / 'scripts'))
from absent import programs, table  # noqa: E402
from absent.compiled import with_sites  # noqa: E402

GIB = 2**30
ROWS = {
  name: row for name, row in table.read(Path(__file__).parents[2] / 'docs' / 'aot.jsonl').items()
  if row['program'] == 'round' and 'refused' not in row}
# The least that a device holds: adapters and moments lie in the chip's own memory, too.
SMALL = {f'round/llama32_1b/v5e_8_tensor/{count}' for count in (1, 3)}


def needed(row) -> float:
  """GiB beside the arguments, by the compiler."""
  return row['peak_gib'] - row['arguments_gib']


def test_estimates_are_within_five_percent_of_the_compilers():
  apart = {name: row['estimated_gib'] - needed(row) for name, row in ROWS.items()}
  far = {name: round(size, 3) for name, size in apart.items()
         if not abs(size) <= 0.05 * needed(ROWS[name])}
  assert len(ROWS) == 112 and set(far) == SMALL and max(map(abs, far.values())) < 0.05


@pytest.mark.parametrize('name', [
  'round/llama31_8b/h100x8_tensor/8', 'round/llama32_1b/v5e_8_fsdp/8',
  'round/llama31_8b_nf4/v5e_8_tensor/3'])
def test_the_rows_have_todays_estimate(name, smollm, monkeypatch):
  """Of meshes of GPUs and of TPUs, on as many of the tests' own devices."""
  monkeypatch.setattr(programs.load, 'load_model', lambda path: smollm)  # for its tokenizer
  row, (config, keys) = ROWS[name], table.MODELS[name.split('/')[1]]
  config = load_config_file(f'configs/{config}.py')
  given = dict(word.removeprefix('--config.').split('=') for word in keys)
  config.update_from_flattened_dict(given | {
    'data.sites': ('synthetic_icu', 'synthetic_dictation'),
    **{f'mesh.{axis}': count for axis, count in row['mesh'].items()}})
  with_sites(config, row['sites'])
  validate(config)
  platform = 'gpu' if row['topology'].startswith('h100') else 'tpu'
  with programs.asked_of(jax.devices(), platform):
    absent = programs.study_of(config, jax.devices())
    found = estimates.estimate(absent.study, absent.inputs)(Execution(row['chunk'], row['remat']))
  assert found / GIB == pytest.approx(row['estimated_gib'], rel=1e-6)


@pytest.mark.parametrize('kind, mebibytes', [
  ('TPU v5 lite', 128), ('TPU v5e', 128), ('TPU v5', 64), ('TPU v5p', 64), ('TPU v6 lite', 128),
  ('TPU7x', 64), ('TPU v4', 16), ('a new kind', 128)])
def test_vector_memory_by_the_name_of_a_chip(kind, mebibytes):
  assert device_share._vector_memory(kind) == mebibytes * 2**20

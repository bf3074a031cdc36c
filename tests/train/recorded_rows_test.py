"""The planner's estimate of memory against what compilers said, in the rows of docs/aot.jsonl."""

import sys
from pathlib import Path

import jax
import pytest

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
# A small model alone on one v5e: 5.1 % too much. Qwen3's MLP has 1,216 channels on each of eight
# devices, no multiple of a TPU's 128: of its kernels the compiler keeps five copies for several
# sites, which are counted, and three for one: 36 % too much.
FARTHER, FEWER = 'round/llama32_1b/v5e/1', 'round/qwen3_4b/v5e_8_tensor/1'
# So little, with tensor 8, that what is not counted matters: up to 0.13 GiB.
SMALL = ('round/qwen3_4b/h100x8_tensor/1', 'round/llama32_1b/v5e_8_tensor/1', *(
  f'round/llama32_1b/h100x8_tensor/{count}' for count in (1, 3, 8, 16)))
# Sites by twos on one v5e: 5.2 % too little, while 16 sites by twos are within 5 %.
NEARLY = 'round/llama31_8b_nf4/v5e/8'
# 0.06 GiB too much, of 0.33; why was not looked into.
SPARED = 'round/llama32_1b/v5e_8_tensor/3'


def apart(row) -> float:
  """How far the estimate is from what is needed beside the arguments, relatively."""
  return row['estimated_gib'] / (row['peak_gib'] - row['arguments_gib']) - 1


def test_estimates_are_within_five_percent_of_the_compilers():
  far = {name: round(apart(row), 3) for name, row in ROWS.items()
         if name not in (FARTHER, FEWER, NEARLY, SPARED, *SMALL) and not abs(apart(row)) <= 0.05}
  assert len(ROWS) > 70 and not far
  assert 0.05 < apart(ROWS[FARTHER]) < 0.055 and -0.055 < apart(ROWS[NEARLY]) < -0.05
  for row in map(ROWS.get, SMALL):
    lacking = row['peak_gib'] - row['arguments_gib'] - row['estimated_gib']
    assert 0 < lacking < 0.13 and apart(row) < -0.05
  # Too much, which costs a slower execution at most, no refusal.
  assert 0.3 < apart(ROWS[FEWER]) < 0.4 and 0.15 < apart(ROWS[SPARED]) < 0.2


@pytest.mark.parametrize('name', [
  'round/llama31_8b/h100x8_tensor/8', 'round/llama32_1b/v5e_8_fsdp/8'])
def test_the_rows_have_todays_estimate(name, smollm, monkeypatch):
  """Of a mesh of GPUs and one of TPUs, on as many of the tests' own devices."""
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

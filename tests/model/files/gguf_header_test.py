"""Random damage to what is read from outside: only an InputError of one line may come of it.

A few hundred inputs each in CI; FEDMEDJAX_FUZZ=50000 in the environment asks for more.
"""

import json
import os
import struct

import gguf
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmedjax.experiment.command_line import parse
from fedmedjax.experiment.config import CHECKS
from fedmedjax.experiment.defaults import PRESETS
from fedmedjax.model.files import gguf as gguf_file
from fedmedjax.model.files.convert import Placement
from fedmedjax.model.files.folder import stored_tensors
from fedmedjax.types import InputError

INPUTS = int(os.environ.get('FEDMEDJAX_FUZZ', '200'))
fuzz = settings(
  derandomize=True, deadline=None, database=None, max_examples=INPUTS,
  suppress_health_check=list(HealthCheck))

# Where, relative to the part of the file that is damaged, and what is written there.
_EDGES = (0, 1, 7, 8, 9, 13, 0x7f, 0xff, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 63, (1 << 64) - 1)
edits = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.one_of(
  st.binary(min_size=1, max_size=8), st.sampled_from([struct.pack('<Q', n) for n in _EDGES]),
  st.sampled_from([struct.pack('<I', n & 0xffffffff) for n in _EDGES]))), max_size=4)
cuts = st.one_of(st.just(1.0), st.floats(0, 1))


def damaged(content: bytes, header: int, changes, cut: float) -> bytes:
  out = bytearray(content)
  for where, what in changes:
    start = int(where * header)
    out[start:start + len(what)] = what
  return bytes(out[:round(cut * len(out))])


def one_line(read):
  """What `read` gives, or None after an InputError; anything else fails the test."""
  try:
    return read()
  except InputError as error:
    assert '\n' not in str(error)
    return None


@pytest.fixture(scope='module')
def gguf_bytes(tmp_path_factory):
  path = tmp_path_factory.mktemp('gguf') / 'model.gguf'
  writer = gguf.GGUFWriter(path, 'llama')
  for name, value in (
      ('embedding_length', 8), ('block_count', 1), ('feed_forward_length', 12),
      ('attention.head_count', 2), ('attention.head_count_kv', 1), ('context_length', 64)):
    writer.add_uint32(f'llama.{name}', value)
  writer.add_float32('llama.attention.layer_norm_rms_epsilon', 1e-5)
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre('gpt-2')
  writer.add_token_list(['a', 'b', 'ab', '<s>'])
  writer.add_token_types([1, 1, 1, 3])
  writer.add_token_merges(['a b'])
  writer.add_eos_token_id(3)
  writer.add_tensor('token_embd.weight', np.ones((4, 8), np.float32))
  writer.add_tensor('output_norm.weight', np.ones(8, np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path.read_bytes()


def test_damaged_gguf_files(gguf_bytes, tmp_path, monkeypatch):
  path, found = tmp_path / 'model.gguf', []
  monkeypatch.setattr(  # of the weights, only what the header says of them
    gguf_file, 'convert', lambda config, tensors, *rest: [
      tensor.read(slice(0, 1)) for tensor in tensors.values()])

  @fuzz
  @given(edits, cuts)
  def check(changes, cut):
    path.write_bytes(damaged(gguf_bytes, len(gguf_bytes) - 200, changes, cut))
    found.append(one_line(lambda: gguf_file.load_gguf(path, Placement())))

  check()
  # Damage beside the point is read, the rest refused.
  assert any(model is not None for model in found) and None in found


def test_damaged_safetensors_files(tmp_path):
  safetensors.numpy.save_file(
    {f'model.layers.{i}.weight': np.ones((2, 3), np.float32) for i in range(3)},
    tmp_path / 'model.safetensors')
  content = (tmp_path / 'model.safetensors').read_bytes()
  header, found = 8 + struct.unpack('<Q', content[:8])[0], []

  @fuzz
  @given(edits, cuts)
  def check(changes, cut):
    (tmp_path / 'model.safetensors').write_bytes(damaged(content, header, changes, cut))
    tensors = one_line(lambda: stored_tensors(tmp_path))
    found.append(tensors)
    for tensor in (tensors or {}).values():
      assert tensor.read(slice(None)).shape == tensor.shape

  check()
  assert any(found) and None in found


def test_damaged_indices(tmp_path):
  """Whatever an index says, no file outside its folder is opened."""
  names = st.one_of(st.text(max_size=12), st.integers(), st.none(), st.lists(st.text(max_size=3)))

  @fuzz
  @given(st.one_of(names, st.dictionaries(st.text(max_size=5), names, max_size=3)))
  def check(weight_map):
    (tmp_path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weight_map}))
    assert not one_line(lambda: stored_tensors(tmp_path))

  check()


def test_random_command_lines():
  """Values of any form for any key: a config that passed every check, or one line."""
  scalars = st.one_of(
    st.integers(-2, 1 << 70), st.floats(), st.booleans(), st.text(max_size=8),
    st.sampled_from(['()', '("a",)', '(1,', '[]', '{}', 'None', '1e999', 'nan', '-', '"', "'",
                     '__import__("os")', '(' * 300]))
  keys = st.one_of(st.sampled_from(list(CHECKS)), st.text('abcd._=:', max_size=8))
  flags = st.lists(st.tuples(keys, st.one_of(scalars, st.tuples(scalars, scalars))), max_size=3)

  @fuzz
  @given(flags, st.one_of(st.sampled_from(list(PRESETS)), st.text(max_size=6)))
  def check(chosen, preset):
    one_line(lambda: parse([
      'fedmedjax', f'--config=configs/quickstart.py:{preset}',
      *(f'--config.{key}={value}' for key, value in chosen)], lambda values: None))

  check()

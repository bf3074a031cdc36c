"""Fixtures shared by all tests. Compilation is what costs: models and shapes are shared."""

import functools
import os

from xla_flags import compiled_fast

# Before jax starts: eight devices for the placement tests, and programs that are compiled fast,
# unless the caller names a level of optimisation. Of a flag that is there twice, the last counts.
_given = os.environ.get('XLA_FLAGS', '')
os.environ['XLA_FLAGS'] = ' '.join([
  '--xla_force_host_platform_device_count=8',
  '' if '--xla_backend_optimization_level' in _given else compiled_fast(), _given])
os.environ.setdefault('HF_HUB_OFFLINE', '1')

from pathlib import Path  # noqa: E402

# Runs of the entry points compile the same programs again and again, in both processes.
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR', str(Path(__file__).parent.parent / '.pytest_cache' / 'xla'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from chromium import find_browser  # noqa: E402
from real_data import real_data  # noqa: E402
from shared_runs import shared_folder  # noqa: E402

from fedmedjax.data.formats import corpora  # noqa: E402
from fedmedjax.data.synthetic import cohorts  # noqa: E402
from fedmedjax.experiment.notes import data_root  # noqa: E402
from fedmedjax.model.files.hf_config import llama3_divisors  # noqa: E402
from fedmedjax.model.files.load import load_model, model_path  # noqa: E402
from fedmedjax.model.llama import Llama, LlamaConfig  # noqa: E402
from fedmedjax.model.loss import packed_attention  # noqa: E402
from fedmedjax.runtime import product_trial  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')
# Two pools of spinning threads on two cores cost minutes.
torch.set_num_threads(1)

# Grouped queries, a head_dim unlike width / heads, scaled rotary frequencies, a separate head.
TINY = LlamaConfig(
  vocab_size=97, hidden_size=24, intermediate_size=40, num_layers=2, num_heads=4, num_kv_heads=2,
  head_dim=8, rms_norm_eps=1e-5, rope_theta=10000.0,
  max_position_embeddings=512, tie_word_embeddings=False,
  rope_divisors=llama3_divisors(
    8, 10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=64))


def pytest_collection_modifyitems(config, items):
  """Leaves out what only a GPU can say."""
  if jax.default_backend() != 'gpu':
    away = [item for item in items if item.get_closest_marker('gpu')]
    config.hook.pytest_deselected(items=away)
    items[:] = [item for item in items if item not in away]


@pytest.fixture(scope='session', autouse=True)
def notes_written_once():
  """A note of an invented cohort is a function of its number; nearly every run asks for 85."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(cohorts, '_write_note', functools.cache(cohorts._write_note))
    yield


@pytest.fixture(scope='session', autouse=True)
def corpora_read_once():
  """The files of the public corpora do not change; to read one takes seconds."""
  root, read = data_root('').resolve(), corpora._read
  once = functools.cache(read)

  def kept(corpus, folder):
    if folder.resolve().parent != root:
      return read(corpus, folder)
    parts, counts = once(corpus, folder.resolve())
    return corpora.Parts(*map(list, parts)), counts.copy()

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(corpora, '_read', kept)
    yield


@pytest.fixture(scope='session', autouse=True)
def no_units_for_bfloat16():
  """Runs take float32 products, whatever the processor that tests are run on is good at."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(product_trial, 'bfloat16_gain', lambda: 1.0)
    yield


@pytest.fixture(scope='session')
def tiny_params():
  """Random weights of the tiny model, norms away from one so that they matter."""
  model = Llama(TINY, packed_attention)
  ones = np.ones(4, np.int32)
  params = model.init(
    jax.random.key(3), ones, ones, None, (np.zeros(0, bool), np.ones((1, 4), np.int32)))['params']
  # Embeddings of 0.02 would leave the softmax flat and hide mistakes.
  return jax.tree.map(lambda x: x * 12.0 if x.shape == (97, 24) else x * 1.1, dict(params))


@pytest.fixture(scope='session')
def smollm():
  """The SmolLM2-135M file of the model package, loaded by us."""
  return load_model(model_path(''))


@pytest.fixture(scope='session')
def tiny_folder(smollm, tmp_path_factory) -> Path:
  """A random two-layer model with SmolLM2's tokenizer; one folder for all processes."""
  def fill(folder: Path) -> None:
    torch.manual_seed(1)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(
      vocab_size=len(smollm.tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
      num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=2048,
      tie_word_embeddings=True)).save_pretrained(folder)
    smollm.tokenizer.save_pretrained(folder)

  return shared_folder(tmp_path_factory, 'tiny_model', fill)


@pytest.fixture(scope='session')
def data_folder() -> Path:
  """The public corpora, or a skip that says how to get them."""
  return real_data()


@pytest.fixture(scope='session')
def real_sentences(data_folder):
  """1,000 real sentences of three corpora."""
  from fedmedjax.data.formats.corpora import load_corpus
  from fedmedjax.data.sentences import split_sentences
  found = []
  for name, count in (('maccrobat2020', 400), ('chia', 300), ('bc5cdr', 300)):
    texts = (
      note.text[start:end] for note in load_corpus(name, data_folder).train
      for start, end in split_sentences(note.text))
    found += [next(texts) for _ in range(count)]
  return found


@pytest.fixture(scope='session')
def browser() -> str:
  """Chromium, or a skip."""
  return find_browser()


@pytest.fixture
def stop_after_a_round(monkeypatch):
  """stop_after_a_round(argv): the program is interrupted once the first round is on disk."""
  from fedmedjax import main
  from fedmedjax.train import loop

  def interrupted(argv):
    def stop(*_):
      raise KeyboardInterrupt

    with monkeypatch.context() as patch:
      patch.setattr(loop, 'round_sentence', stop)
      assert main.main(argv) == 130

  return interrupted

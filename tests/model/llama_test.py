"""The decoder against transformers, and its attention against a dense formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from conftest import TINY

from fedmedjax.experiment import model_path
from fedmedjax.model import llama
from fedmedjax.model.decode import cached_attention, decoder, prefiller
from fedmedjax.model.load import load_model
from fedmedjax.model.loss import packed_attention


def logits(config, params, tokens, adapter=None, scale=1.0):
  """f32[T, V] of one plain sequence."""
  model = llama.Llama(config, packed_attention, lora_scale=scale)
  tokens = jnp.asarray(tokens)
  hidden, _ = model.apply(
    {'params': params, 'lora': adapter or {}}, tokens, jnp.arange(len(tokens)), None,
    (jnp.zeros(0, bool), jnp.ones((1, len(tokens)), jnp.int32)))
  return hidden @ llama.head_weight(params).T


@pytest.fixture(scope='module')
def torch_tiny(tmp_path_factory):
  """A random Llama 3.1-shaped transformers model, saved as safetensors with a tokenizer."""
  folder = tmp_path_factory.mktemp('tiny')
  config = transformers.LlamaConfig(
    vocab_size=97, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, rms_norm_eps=3e-4,
    max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
    rope_parameters={
      'rope_type': 'llama3', 'rope_theta': 5e4, 'factor': 8.0, 'low_freq_factor': 1.0,
      'high_freq_factor': 4.0, 'original_max_position_embeddings': 32})
  torch.manual_seed(0)
  model = transformers.LlamaForCausalLM(config).eval()
  with torch.no_grad():
    for weight in model.parameters():
      weight.add_(torch.randn_like(weight) * 0.3)
  model.save_pretrained(folder)
  import tokenizers
  words = {f'w{i}': i for i in range(97)}
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token='w0'))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, eos_token='w2', unk_token='w0').save_pretrained(folder)
  return model, folder


@pytest.mark.parametrize('length', [3, 30, 90])
def test_safetensors_model_gives_transformers_logits(torch_tiny, length):
  """Also beyond the original context of 32, where the scaled frequencies matter."""
  model, folder = torch_tiny
  loaded = load_model(folder)
  tokens = np.random.default_rng(0).integers(3, 97, length)
  with torch.no_grad():
    expected = model(torch.tensor(tokens[None])).logits[0].numpy()
  found = logits(loaded.config, loaded.params, tokens)
  np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
  assert loaded.tokenizer.eos_token_id == 2


def test_hyper_parameters_are_the_files(torch_tiny):
  loaded = load_model(torch_tiny[1])
  assert loaded.config.rms_norm_eps == 3e-4
  assert loaded.config.rope_theta == 5e4
  assert loaded.config.rope_scaling == llama.RopeScaling(8.0, 1.0, 4.0, 32)
  assert (loaded.config.num_kv_heads, loaded.config.head_dim) == (2, 8)


def test_sharded_safetensors_load_alike(torch_tiny, tmp_path):
  model, folder = torch_tiny
  model.save_pretrained(tmp_path, max_shard_size='20KB')
  for file in ('tokenizer.json', 'tokenizer_config.json'):
    (tmp_path / file).write_bytes((folder / file).read_bytes())
  assert len(list(tmp_path.glob('*.safetensors'))) > 1
  whole, parts = load_model(folder).params, load_model(tmp_path).params
  assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), whole, parts))


def test_tied_model_uses_its_embedding_as_head(tiny_params):
  import dataclasses
  tied = dataclasses.replace(TINY, tie_word_embeddings=True)
  params = {key: value for key, value in tiny_params.items() if key != 'head'}
  untied = params | {'head': params['embedding']}
  tokens = np.arange(5, 15)
  np.testing.assert_array_equal(
    logits(tied, params, tokens), logits(TINY, untied, tokens))


def test_rope_frequencies_match_transformers(torch_tiny):
  from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
  model, folder = torch_tiny
  reference = LlamaRotaryEmbedding(model.config)
  found = llama.rope_frequencies(load_model(folder).config)
  np.testing.assert_allclose(found, reference.inv_freq.numpy(), rtol=1e-5)
  positions = torch.arange(200)[None]
  cos, sin = reference(torch.zeros(1, 200, 8), positions)
  ours = llama.rope(jnp.arange(200), load_model(folder).config, jnp.float32)
  np.testing.assert_allclose(ours[0], cos[0, :, :4].numpy(), atol=1e-5)
  np.testing.assert_allclose(ours[1], sin[0, :, :4].numpy(), atol=1e-5)


def test_attend_over_split_sources_is_one_softmax():
  """Keys cut into a shared and a batched source give what the dense formula gives."""
  rng = np.random.default_rng(1)
  q = rng.normal(size=(3, 5, 4, 8)).astype(np.float32)
  shared = rng.normal(size=(2, 2, 6, 8)).astype(np.float32)       # (k, v) [KV, P, d]
  own = rng.normal(size=(2, 2, 3, 7, 8)).astype(np.float32)       # (k, v) [KV, B, M, d]
  mask = rng.random((3, 5, 7)) < 0.5
  valid = np.array([True, True, False, True, True, False])
  found = llama.attend(
    jnp.asarray(q), (llama.Source(shared[0], shared[1], valid), llama.Source(*own, mask)))
  for b, t, h in np.ndindex(3, 5, 4):
    keys = np.concatenate([shared[0, h // 2], own[0, h // 2, b]])
    values = np.concatenate([shared[1, h // 2], own[1, h // 2, b]])
    allowed = np.concatenate([valid, mask[b, t]])
    scores = np.where(allowed, keys @ q[b, t, h] / np.sqrt(8), -np.inf)
    weights = np.exp(scores - scores.max())
    expected = weights @ values / weights.sum()
    np.testing.assert_allclose(found[b, t, h], expected, atol=1e-5)


@pytest.mark.parametrize('remat', ['dots', 'full'])
def test_remat_changes_nothing(tiny_params, remat):
  tokens = jnp.arange(5, 21)

  def loss(params, policy):
    model = llama.Llama(TINY, packed_attention, remat=policy)
    hidden, _ = model.apply(
      {'params': params, 'lora': {}}, tokens, jnp.arange(16), None,
      (jnp.zeros(0, bool), jnp.ones((1, 16), jnp.int32)))
    return jnp.sum(jnp.sin(hidden))

  plain = jax.grad(loss)(tiny_params, 'none')
  saved = jax.grad(loss)(tiny_params, remat)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), plain, saved)


@pytest.fixture(scope='module')
def torch_smollm():
  path = model_path('')
  model = transformers.AutoModelForCausalLM.from_pretrained(
    str(path.parent), gguf_file=path.name, dtype=torch.float32).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
  return model, tokenizer


@pytest.fixture(scope='module')
def sentences(data_folder):
  """1,000 real sentences of three corpora."""
  from fedmedjax.data.corpora import load_corpus
  from fedmedjax.data.sentences import split_sentences
  found = []
  for name, count in (('maccrobat2020', 400), ('chia', 300), ('bc5cdr', 300)):
    texts = (
      note.text[start:end] for note in load_corpus(name, data_folder).train
      for start, end in split_sentences(note.text))
    found += [next(texts) for _ in range(count)]
  return found


def test_smollm_logits_on_real_text(smollm, torch_smollm, data_folder):
  """Issue: max |difference| <= 1e-3 in float32 over 256 tokens."""
  model, _ = torch_smollm
  text = sorted((data_folder / 'maccrobat2020').glob('*.txt'))[0].read_text()
  tokens = smollm.tokenizer(text)['input_ids'][:256]
  assert len(tokens) == 256
  with torch.no_grad():
    expected = model(torch.tensor([tokens])).logits[0].numpy()
  found = jax.jit(logits, static_argnums=0)(smollm.config, smollm.params, np.asarray(tokens))
  assert float(np.abs(found - expected).max()) <= 1e-3


def test_smollm_tokenisation_on_real_sentences(smollm, torch_smollm, sentences):
  _, tokenizer = torch_smollm
  assert len(sentences) == 1000
  ours, theirs = smollm.tokenizer(sentences)['input_ids'], tokenizer(sentences)['input_ids']
  assert ours == theirs
  assert smollm.tokenizer.eos_token_id == tokenizer.eos_token_id
  decoded = [smollm.tokenizer.decode(x, clean_up_tokenization_spaces=False) for x in ours]
  assert decoded == sentences


def test_smollm_greedy_continuations(smollm, torch_smollm, sentences):
  """20 prompts of unlike lengths behind one shared instruction, 16 new tokens each."""
  model, _ = torch_smollm
  prefix = smollm.tokenizer('### Task:\nContinue the clinical text.\n')['input_ids']
  prompts = [prefix[-1:] + x for x in smollm.tokenizer(sentences[:20])['input_ids']]
  width, new = max(map(len, prompts)), 16
  tokens = np.zeros((20, width), np.int32)
  for row, prompt in enumerate(prompts):
    tokens[row, :len(prompt)] = prompt
  ours = llama.Llama(smollm.config, cached_attention)
  shared = prefiller(ours)({}, smollm.params, jnp.asarray(prefix[:-1]))
  out, counts = decoder(ours, new)(
    {}, smollm.params, shared, jnp.int32(len(prefix) - 1), tokens,
    np.asarray([len(p) for p in prompts], np.int32), np.full(20, new, np.int32),
    jnp.asarray([smollm.tokenizer.eos_token_id]))
  for row, prompt in enumerate(prompts):
    whole = torch.tensor([prefix[:-1] + prompt])
    with torch.no_grad():
      expected = model.generate(
        whole, attention_mask=torch.ones_like(whole), max_new_tokens=new, do_sample=False,
        pad_token_id=0)[0, whole.shape[1]:].tolist()
    if smollm.tokenizer.eos_token_id in expected:
      expected = expected[:expected.index(smollm.tokenizer.eos_token_id)]
    assert out[row, :counts[row]].tolist() == expected


def test_lora_adds_the_scaled_product(tiny_params):
  """(W + alpha/r A B) x: merging the product into the kernel gives the same logits."""
  from fedmedjax.model.lora import LoraConfig, init_adapter
  lora = LoraConfig(3, 6.0, llama.PROJECTIONS)
  adapter = init_adapter(jax.random.key(0), TINY, lora)
  adapter = jax.tree.map(
    lambda x: x + 0.05 * jax.random.normal(jax.random.key(1), x.shape), adapter)
  layers = {
    name: value if name not in adapter['layers'] else {
      'kernel': value['kernel'] + 2.0 * adapter['layers'][name]['a'] @ adapter['layers'][name]['b']}
    for name, value in tiny_params['layers'].items()}
  tokens = np.arange(7, 29)
  merged = logits(TINY, tiny_params | {'layers': layers}, tokens)
  np.testing.assert_allclose(
    logits(TINY, tiny_params, tokens, adapter, lora.scale), merged, rtol=1e-4, atol=1e-4)


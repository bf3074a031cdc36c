"""The decoder against transformers, and its attention against a dense formula."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from conftest import TINY

from fedmedjax.model import attention, llama, lora
from fedmedjax.model.batching import Question, decode, decoder
from fedmedjax.model.decode import cached_attention
from fedmedjax.model.files.convert import Placement, params_shape
from fedmedjax.model.files.load import model_path
from fedmedjax.model.loss import packed_attention
from fedmedjax.model.speculation import END


@partial(jax.jit, static_argnames=('config', 'scale'))
def logits(config, params, tokens, adapter=None, scale=1.0):
  """f32[T, V] of one plain sequence."""
  model = llama.Llama(config, packed_attention, lora_scale=scale)
  tokens = jnp.asarray(tokens)
  hidden, _ = model.apply(
    {'params': params, 'lora': adapter or {}}, tokens, jnp.arange(len(tokens)), None,
    (jnp.zeros(0, bool), jnp.ones((1, len(tokens)), jnp.int32)))
  return hidden @ llama.head_weight(params).T


def test_tied_model_uses_its_embedding_as_head(tiny_params):
  tied = dataclasses.replace(TINY, tie_word_embeddings=True)
  params = {key: value for key, value in tiny_params.items() if key != 'head'}
  untied = params | {'head': params['embedding']}
  tokens = np.arange(5, 15)
  np.testing.assert_array_equal(
    logits(tied, params, tokens), logits(TINY, untied, tokens))


def test_attend_over_split_sources_is_one_softmax():
  """Keys cut into a shared and a batched source give what the dense formula gives."""
  rng = np.random.default_rng(1)
  q = rng.normal(size=(3, 5, 4, 8)).astype(np.float32)
  shared = rng.normal(size=(2, 2, 6, 8)).astype(np.float32)       # (k, v) [KV, P, d]
  own = rng.normal(size=(2, 2, 3, 7, 8)).astype(np.float32)       # (k, v) [KV, B, M, d]
  mask = rng.random((3, 5, 7)) < 0.5
  valid = np.array([True, True, False, True, True, False])
  found = attention.attend(
    jnp.asarray(q), (attention.Source(shared[0], shared[1], valid), attention.Source(*own, mask)))
  for b, t, h in np.ndindex(3, 5, 4):
    keys = np.concatenate([shared[0, h // 2], own[0, h // 2, b]])
    values = np.concatenate([shared[1, h // 2], own[1, h // 2, b]])
    allowed = np.concatenate([valid, mask[b, t]])
    scores = np.where(allowed, keys @ q[b, t, h] / np.sqrt(8), -np.inf)
    weights = np.exp(scores - scores.max())
    expected = weights @ values / weights.sum()
    np.testing.assert_allclose(found[b, t, h], expected, atol=1e-5)


@pytest.mark.parametrize('cap', [0.0, 1.5])
def test_gradient_of_attention_is_that_of_the_dense_formula(cap):
  """Against automatic differentiation of one softmax over all keys, queries and keys and values."""
  rng = np.random.default_rng(2)
  q, out = (rng.normal(size=(3, 5, 4, 8)).astype(np.float32) for _ in range(2))
  shared = rng.normal(size=(2, 2, 6, 8)).astype(np.float32)
  own = rng.normal(size=(2, 2, 3, 7, 8)).astype(np.float32)
  mask = rng.random((3, 5, 7)) < 0.5
  valid = np.array([True, True, False, True, True, False])

  def ours(q, shared, own):
    sources = attention.Source(*shared, valid), attention.Source(*own, mask)
    return jnp.sum(attention.attend(q, sources, cap) * out)

  def dense(q, shared, own):
    keys, values = (  # [KV, B, M, d], the shared ones once for each of the batch
      jnp.concatenate([jnp.repeat(a[:, None], 3, axis=1), b], axis=2)
      for a, b in zip(shared, own, strict=True))
    allowed = np.concatenate([np.broadcast_to(valid, (3, 5, 6)), mask], axis=-1)
    scores = jnp.einsum('btkgd,kbmd->kgbtm', q.reshape(3, 5, 2, 2, 8), keys) / np.sqrt(8)
    scores = cap * jnp.tanh(scores / cap) if cap else scores
    weights = jax.nn.softmax(jnp.where(allowed[None, None], scores, -jnp.inf), axis=-1)
    return jnp.sum(jnp.einsum('kgbtm,kbmd->btkgd', weights, values).reshape(out.shape) * out)

  found, expected = (jax.grad(fn, argnums=(0, 1, 2))(q, shared, own) for fn in (ours, dense))
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize('remat', ['products', 'narrow_products', 'full'])
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


@pytest.mark.parametrize('fused', [False, True])
def test_what_a_layer_keeps(fused, tiny_params):
  """Of 16 tokens in bfloat16, width 32, MLP 64, as [L, T, size] arrays of a scan over L layers.

  An adapter of down_proj needs that product's own input for its gradient, so 'none' keeps three
  arrays as wide as the MLP: gate, up, gated. 'products' keeps the first two, fused or not;
  'narrow_products' neither. None keeps a norm's float32 part.
  """
  config = dataclasses.replace(TINY, fused=fused)
  base = params_shape(config, Placement(jnp.bfloat16))
  adapter = jax.eval_shape(
    lambda: lora.init_adapter(jax.random.key(0), config, lora.LoraConfig(4, 8.0, ('down_proj',))))

  def kept(remat):
    model = llama.Llama(config, packed_attention, remat=remat, dtype=jnp.bfloat16)

    def residuals(adapter, base):
      def total(adapter):
        hidden, _ = model.apply(
          {'params': base, 'lora': adapter}, jnp.arange(5, 21), jnp.arange(16), None,
          (jnp.zeros(0, bool), jnp.ones((1, 16), jnp.int32)))
        return hidden.sum()
      return jax.tree.leaves(jax.vjp(total, adapter)[1])

    leaves = jax.tree.leaves(jax.eval_shape(residuals, adapter, base))
    layers, wide = config.num_layers, config.intermediate_size
    float32 = (layers, 16, config.hidden_size)
    assert not [leaf for leaf in leaves if leaf.dtype == jnp.float32 and leaf.shape == float32]
    return sum(
      leaf.shape[-1] for leaf in leaves if leaf.shape[:2] == (layers, 16) and leaf.ndim == 3
      and leaf.shape[-1] in (wide, 2 * wide)) // wide

  found = [kept(remat) for remat in llama.REMAT]
  assert found == [3, 2, 0, 0]


@pytest.fixture(scope='module')
def torch_smollm():
  path = model_path('')
  model = transformers.AutoModelForCausalLM.from_pretrained(
    str(path.parent), gguf_file=path.name, dtype=torch.float32).eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
  return model, tokenizer


def test_smollm_logits_on_real_text(smollm, torch_smollm, data_folder):
  """Issue: max |difference| <= 1e-3 in float32 over 256 tokens."""
  model, _ = torch_smollm
  text = sorted((data_folder / 'maccrobat2020').glob('*.txt'))[0].read_text()
  tokens = smollm.tokenizer(text)['input_ids'][:256]
  assert len(tokens) == 256
  with torch.no_grad():
    expected = model(torch.tensor([tokens])).logits[0].numpy()
  found = logits(smollm.config, smollm.params, np.asarray(tokens))
  assert float(np.abs(found - expected).max()) <= 1e-3


def test_smollm_tokenisation_on_real_sentences(smollm, torch_smollm, real_sentences):
  _, tokenizer = torch_smollm
  assert len(real_sentences) == 1000
  ours, theirs = (one(real_sentences)['input_ids'] for one in (smollm.tokenizer, tokenizer))
  assert ours == theirs
  assert smollm.tokenizer.eos_token_id == tokenizer.eos_token_id
  decoded = [smollm.tokenizer.decode(x, clean_up_tokenization_spaces=False) for x in ours]
  assert decoded == real_sentences


@pytest.mark.slow
def test_smollm_greedy_continuations(smollm, torch_smollm, real_sentences):
  """20 prompts of unlike lengths behind one shared instruction, 8 at once, 16 new tokens each."""
  model, _ = torch_smollm
  prefix = smollm.tokenizer('### Task:\nContinue the clinical text.\n')['input_ids']
  prompts = [prefix[-1:] + x for x in smollm.tokenizer(real_sentences[:20])['input_ids']]
  new = 16
  out = decode(
    decoder(llama.Llama(smollm.config, cached_attention), 2), {}, smollm.params,
    np.asarray(prefix[:-1]), [Question(np.asarray(prompt), new) for prompt in prompts],
    eos=[smollm.tokenizer.eos_token_id], pieces=np.asarray([END]), rows=8)
  for found, prompt in zip(out, prompts, strict=True):
    whole = torch.tensor([prefix[:-1] + prompt])
    with torch.no_grad():
      expected = model.generate(
        whole, attention_mask=torch.ones_like(whole), max_new_tokens=new, do_sample=False,
        pad_token_id=0)[0, whole.shape[1]:].tolist()
    if smollm.tokenizer.eos_token_id in expected:
      expected = expected[:expected.index(smollm.tokenizer.eos_token_id)]
    assert found.tokens.tolist() == expected


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


"""Every family of base models is the same model here as in transformers."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from families import FAMILIES, build, save

from fedmedjax.model import llama
from fedmedjax.model.attention import capped
from fedmedjax.model.batching import Question, decode, decoder
from fedmedjax.model.decode import cached_attention
from fedmedjax.model.files.convert import Placement
from fedmedjax.model.files.load import load_model
from fedmedjax.model.loss import packed_attention
from fedmedjax.model.speculation import END
from fedmedjax.types import InputError

# The last is beyond the original context of the scaled families and the window of the others.
LENGTHS = (4, 30, 90)


@pytest.fixture(scope='module', params=FAMILIES)
def family(request, tmp_path_factory):
  """(transformers model, its folder, the model loaded by us)."""
  model = build(FAMILIES[request.param])
  folder = save(model, tmp_path_factory.mktemp(request.param))
  return model, folder, load_model(folder)


def padded(side: str):
  """(tokens, positions, segments i32[3, 90]): a row per length, padded on one side."""
  rng = np.random.default_rng(0)
  tokens, positions, segments = np.zeros((3, len(LENGTHS), LENGTHS[-1]), np.int32)
  for row, length in enumerate(LENGTHS):
    where = slice(0, length) if side == 'right' else slice(LENGTHS[-1] - length, None)
    tokens[row, where] = rng.integers(3, 97, length)
    positions[row, where] = np.arange(length)
    segments[row, where] = 1
  return tokens, positions, segments


def ours(loaded, rows) -> np.ndarray:
  """f32[3, 90, V]."""
  tokens, positions, segments = rows
  dtype = loaded.params['embedding'].dtype

  @jax.jit
  def logits(params, tokens, positions, segments):
    hidden, _ = llama.Llama(loaded.config, packed_attention, dtype=dtype).apply(
      {'params': params, 'lora': {}}, tokens.reshape(-1), positions.reshape(-1), None,
      (jnp.zeros(0, bool), segments))
    return capped(jnp.einsum(
      'td,vd->tv', hidden, llama.head_weight(params), preferred_element_type=jnp.float32),
      loaded.config.logit_cap)

  return np.asarray(logits(loaded.params, tokens, positions, segments)).reshape(*tokens.shape, -1)


def theirs(model, rows) -> np.ndarray:
  tokens, positions, segments = (torch.tensor(x, dtype=torch.long) for x in rows)
  with torch.no_grad():
    out = model(tokens, attention_mask=segments, position_ids=positions)
  return out.logits.float().numpy()


@pytest.mark.parametrize('side', ['right', 'left'])
def test_logits(family, side):
  """float32, three lengths, padded on either side: <= 1e-4."""
  model, _, loaded = family
  rows = padded(side)
  real = rows[2] > 0
  expected, found = theirs(model, rows), ours(loaded, rows)
  assert np.abs(expected[real]).max() > 0.5
  assert float(np.abs(found - expected)[real].max()) <= 1e-4


def test_bfloat16_is_as_near_as_transformers_is(family):
  """No further from float32 than twice what transformers' own bfloat16 is, in the mean square."""
  model, folder, _ = family
  rows = padded('right')
  real = rows[2] > 0
  exact = theirs(model, rows)[real]
  reference = theirs(build(model.config).to(torch.bfloat16), rows)[real]
  found = ours(load_model(folder, Placement(jnp.bfloat16)), rows)[real]
  allowed = 2 * np.sqrt(np.mean((reference - exact) ** 2))
  assert 0 < np.sqrt(np.mean((found - exact) ** 2)) <= allowed


# Slow for all but one: the logits of every family are compared above.
@pytest.mark.parametrize('family', [
  name if name == 'llama31' else pytest.param(name, marks=pytest.mark.slow)
  for name in FAMILIES], indirect=True)
def test_greedy_continuations(family):
  """64 tokens of 8 prompts of unlike lengths behind a shared prefix, 4 at once: identical."""
  model, _, loaded = family
  rng = np.random.default_rng(1)
  prefix = rng.integers(3, 97, 11)
  lengths = np.asarray([1, 2, 3, 5, 8, 13, 17, 20], np.int32)
  tokens = rng.integers(3, 97, (8, 20)).astype(np.int32)
  whole, mask = np.zeros((8, 31), int), np.zeros((8, 31), int)
  for row, length in enumerate(lengths):
    tokens[row, length:] = 0
    whole[row, 20 - length:] = [*prefix, *tokens[row, :length]]
    mask[row, 20 - length:] = 1
  if loaded.config.rope_original:
    # The texts may reach beyond it, and so we rotate from their beginnings on as for long ones.
    settings = copy.deepcopy(model.config)
    settings.original_max_position_embeddings = 8
    settings.rope_parameters['original_max_position_embeddings'] = 8
    model = build(settings)
  expected = model.generate(
    torch.tensor(whole), attention_mask=torch.tensor(mask), max_new_tokens=64, do_sample=False,
    eos_token_id=None, pad_token_id=0)[:, 31:].numpy()
  decoding = decoder(llama.Llama(loaded.config, cached_attention), 3)
  # Some guesses are what it says: a piece of its longest example's answer.
  pieces = np.asarray([*expected[7, 20:40], END], np.int32)

  def said(eos, limits):
    return decode(
      decoding, {}, loaded.params, prefix, [
        Question(row[:length], limit)
        for row, length, limit in zip(tokens, lengths, limits, strict=True)],
      eos=[eos], pieces=pieces, rows=4)

  out = said(-1, [64] * 8)
  assert max(one.passes for one in out) <= 64 and out[7].passes < 64
  np.testing.assert_array_equal([one.tokens for one in out], expected)
  # An end or a limit that a guess runs into, or over.
  eos, limits = int(expected[7, 30]), [64, 1, 2, 3, 40, 41, 42, 43]
  for one, whole, limit in zip(said(eos, limits), expected.tolist(), limits, strict=True):
    stop = min(limit, whole.index(eos) if eos in whole else limit)
    assert one.tokens.tolist() == whole[:stop]


def test_rotation_alone(family):
  model, _, loaded = family
  config, positions = loaded.config, np.arange(200)
  # Layers with a window may have a rotation of their own.
  kinds = [()] if not config.local_rope_theta else [('full_attention',), ('sliding_attention',)]
  half = (config.rotary_dim or config.head_dim) // 2
  for last in (200, 20):
    found = llama.rope(jnp.asarray(positions[:last]), config, jnp.float32)
    expected = [
      model.model.rotary_emb(torch.zeros(1, last, 8), torch.tensor(positions[None, :last]), *kind)
      for kind in kinds]
    for ours, theirs in zip(found, zip(*expected, strict=True), strict=True):
      for one, two in zip(ours.reshape(-1, last, half), theirs, strict=True):
        np.testing.assert_allclose(one, two[0, :, :half].numpy(), atol=1e-5)


def test_what_sets_the_families_apart_is_read_from_the_file(family):
  """Each of these, lost on the way, would leave another model."""
  model, _, loaded = family
  theirs, config = model.config, loaded.config
  assert config.rms_norm_eps == 3e-4 and config.tie_word_embeddings == theirs.tie_word_embeddings
  rope = theirs.rope_parameters
  rope = rope.get('full_attention', rope)
  assert config.fused == (kind := theirs.model_type == 'phi3') and config.rotary_dim == 4 * kind
  assert bool(config.rope_divisors) == (rope['rope_type'] != 'default')
  assert config.rope_theta == rope['rope_theta']
  assert config.query_scalar == getattr(theirs, 'query_pre_attn_scalar', 0)
  kind = theirs.model_type
  assert config.local_rope_theta == (2e3 if kind == 'gemma3_text' else 0)
  assert (config.score_cap, config.logit_cap) == {
    'gemma2': (3, 7), 'gemma3_text': (0, 9)}.get(kind, (0, 0))
  assert config.qk_norm == (kind in ('qwen3', 'gemma3_text'))
  assert config.windows == {
    'mistral': (12, 12, 12), 'qwen2': (0, 12, 12), 'gemma2': (12, 0, 12),
    'gemma3_text': (12, 0, 12), 'phi3': (12, 12, 12)}.get(kind, ())
  biased = getattr(theirs, 'mlp_bias', False)
  assert config.biases == (
    llama.PROJECTIONS if biased else {
      'qwen2': llama.PROJECTIONS[:3], 'gemma3_text': llama.PROJECTIONS[:4]}.get(kind, ()))


def test_a_window_means_nothing_to_a_llama(tmp_path):
  """As in transformers: converted Mistrals carry the key, their attention is full."""
  folder = save(build(FAMILIES['llama2']), tmp_path)
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | dict(sliding_window=16, qk_norm=True)))
  config = load_model(folder).config
  assert config.windows == () and not config.qk_norm


@pytest.mark.parametrize('change, message', [
  (dict(model_type='gpt2'), 'llama, mistral, qwen2, qwen3'),
  (dict(model_type='mixtral', num_local_experts=8), "='mixtral': is a mixture of experts, which"),
  (dict(model_type='qwen3_moe'), "='qwen3_moe': is a mixture of experts"),
  (dict(hidden_act='gelu'), 'hidden_act'),
  (dict(rope_parameters={'rope_type': 'yarn', 'rope_theta': 1e4}), 'yarn'),
  (dict(partial_rotary_factor=0.5), 'partial_rotary_factor'),
  (dict(layer_types=['linear_attention'] * 3), 'layer_types'),
])
def test_what_is_not_computed_is_refused(tmp_path, change, message):
  folder = save(build(FAMILIES['qwen2']), tmp_path)
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(InputError, match=message):
    load_model(folder)

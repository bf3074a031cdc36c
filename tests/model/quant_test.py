"""Quantised kernels: hand-worked blocks, another library's numbers, memory, and real loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from conftest import TINY
from scipy.stats import norm

from fedmedjax.model import quant
from fedmedjax.model.files.convert import Placement, params_shape
from fedmedjax.model.files.load import load_model
from fedmedjax.model.llama import PROJECTIONS, Llama, head_weight
from fedmedjax.model.lora import LoraConfig, init_adapter
from fedmedjax.model.loss import HEAD_BLOCK, packed_attention, weighted_nll


def test_code_book_is_the_papers_construction():
  """QLoRA, equation 4 with appendix E's offset: 8 positive and 7 negative normal quantiles and 0.

  The outermost quantile is 1 - (1/30 + 1/32) / 2; all are scaled so that it becomes 1.
  """
  outermost = 1 - (1 / 30 + 1 / 32) / 2
  positive = norm.ppf(np.linspace(outermost, 0.5, 9))[:-1]
  negative = -norm.ppf(np.linspace(outermost, 0.5, 8))[:-1]
  codes = np.sort(np.concatenate([positive, negative, [0.0]]))
  np.testing.assert_allclose(quant.NF4_CODES, codes / codes.max(), atol=1e-6)


def test_a_block_worked_by_hand():
  """Block of 64 inputs of one channel, largest magnitude 2: scale 2.

  2 -> 1.0 (code 15), -2 -> -1.0 (0), 0 -> 0 (7), 0.15 / 2 = 0.075 -> 0.0796 (8),
  0.07 / 2 = 0.035 lies below the midpoint 0.0398 of codes 7 and 8 -> 0 (7), and 0.9 / 2 = 0.45
  -> 0.4407 (12). Input 32 is the high half of the byte of input 0. The squared error is
  0.0092^2 + 0.07^2 + 0.0186^2 = 0.0053; a scale 5 % larger or smaller misses the two largest by
  0.1 each, which is 0.02.
  """
  column = np.zeros(64, np.float32)
  column[[0, 1, 3, 4, 32]] = 2.0, -2.0, 0.15, 0.07, 0.9
  stored = quant.to_nf4(jnp.asarray(column[:, None]))
  assert stored.scale.shape == (1, 1, 1) and float(stored.scale[0, 0, 0]) == 2.0
  assert stored.codes.shape == (1, 32, 1) and stored.codes.dtype == jnp.uint8
  assert stored.codes[0, :5, 0].tolist() == [
    15 + 16 * 12, 0 + 16 * 7, 7 + 16 * 7, 8 + 16 * 7, 7 + 16 * 7]
  wide = quant.dequantize(stored, 64, jnp.float32)[:, 0]
  np.testing.assert_allclose(
    wide[jnp.asarray([0, 1, 2, 3, 4, 32])],
    [2.0, -2.0, 0.0, 2 * 0.07958029955625534, 0.0, 2 * 0.44070982933044434], rtol=1e-6)


def test_the_scale_with_the_least_error_is_taken():
  """A block of one 1.0 and 63 times -0.8 * 0.6962.

  At scale 1, -0.557 lies between codes -0.5251 and -0.6962 and is missed by 0.0319 each time:
  63 * 0.0319^2 = 0.064. At scale 0.8 it is met and the 1.0 clipped: 0.2^2 = 0.04. Turned over
  (negative scales) nothing is better: 0.557 / 0.95 = 0.5863 is missed by 0.0237 * 0.95 and more.
  """
  column = np.full(64, -0.8 * 0.6961928, np.float32)
  column[0] = 1.0
  stored = quant.to_nf4(jnp.asarray(column[:, None]))
  wide = np.asarray(quant.dequantize(stored, 64, jnp.float32))[:, 0]
  errors = {
    factor: sum((min(abs(np.float32(code * factor) - w) for code in quant.NF4_CODES)) ** 2
                for w in column)
    for factor in quant.NF4_FACTORS}
  assert float(stored.scale[0, 0, 0]) == min(errors, key=errors.get) != 1.0
  np.testing.assert_allclose(np.sum((wide - column) ** 2), min(errors.values()), rtol=1e-4)
  assert errors[np.float32(1.0)] == pytest.approx(0.064, rel=0.02)
  assert errors[np.float32(0.8)] == pytest.approx(0.04, rel=0.02)


def test_int8_worked_by_hand():
  """Channel (1.27, -0.5, 0): scale 0.01, values (127, -50, 0). A channel of zeros stays zero."""
  stored = quant.to_int8(jnp.asarray([[1.27, 0.0], [-0.5, 0.0], [0.0, 0.0]]))
  assert stored.values[:, 0].tolist() == [127, -50, 0]
  np.testing.assert_allclose(stored.scale, [[0.01, 1.0]], rtol=1e-6)
  assert not quant.dequantize(stored, 3, jnp.float32)[:, 1].any()


@pytest.mark.parametrize('kind, qtype, least, most', [
  ('int8', jnp.int8, 0.95, 1.0), ('nf4', 'nf4', 0.65, 0.85)])
def test_error_beside_qwix(kind, qtype, least, most):
  """Mean squared error of normal weights, layers in front: int8 as qwix, NF4 a quarter less.

  qwix scales int8 so that the largest weight is clipped by half a step.
  """
  kernel = jax.random.normal(jax.random.key(0), (2, 128, 256))
  tiles = {1: 64} if kind == 'nf4' else {}
  theirs = qwix.dequantize(qwix.quantize(
    kernel, qtype, channelwise_axes=[0, 2], tiled_axes=tiles))
  ours = quant.dequantize(quant.QUANTIZATIONS[kind](kernel), 128, jnp.float32)
  ratio = jnp.mean((ours - kernel) ** 2) / jnp.mean((theirs - kernel) ** 2)
  assert least < float(ratio) < most


# Half the widest gap of the codes, 0.152, times the largest scale, 1.05; what is clipped lies at
# most 0.25 beyond.
@pytest.mark.parametrize('kind, bound', [('int8', 1 / 254), ('nf4', 0.26)])
@pytest.mark.parametrize('rows', [128, 40])
def test_error_is_bounded_by_the_widest_step(kind, bound, rows):
  """As a share of the channel's largest magnitude; 40 rows leave a block unfilled."""
  kernel = jax.random.normal(jax.random.key(1), (rows, 8))
  wide = quant.dequantize(quant.QUANTIZATIONS[kind](kernel), rows, jnp.float32)
  assert wide.shape == kernel.shape
  error = jnp.abs(wide - kernel) / jnp.abs(kernel).max(axis=0, keepdims=True)
  assert 0 < float(error.max()) <= bound * 1.001


@pytest.mark.parametrize('kind', ['int8', 'nf4'])
def test_product_and_gradient_are_those_of_the_wide_kernel(kind):
  kernel = jax.random.normal(jax.random.key(2), (40, 8))
  x = jax.random.normal(jax.random.key(3), (5, 40))
  stored = quant.QUANTIZATIONS[kind](kernel)
  wide = quant.dequantize(stored, 40, jnp.float32)
  for kernel in (stored, wide):
    value, pull = jax.vjp(lambda x, kernel=kernel: quant.matmul(x, kernel), x)
    found = value, pull(jnp.cos(value))[0]
    if kernel is stored:
      ours = found
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, found)


def _quantised(params, kind):
  layers = {
    name: leaf | {'kernel': quant.QUANTIZATIONS[kind](leaf['kernel'])} if 'kernel' in leaf else leaf
    for name, leaf in params['layers'].items()}
  return params | {'layers': layers}


def _loss(config, params, adapter, remat='none', length=64):
  model = Llama(config, packed_attention, lora_scale=4.0, remat=remat)
  tokens = jnp.arange(length) % 97
  hidden, _ = model.apply(
    {'params': params, 'lora': adapter}, tokens, jnp.arange(length), None,
    (jnp.zeros(0, bool), jnp.ones((1, length), jnp.int32)))
  return weighted_nll(
    HEAD_BLOCK, 1, hidden, head_weight(params), jnp.roll(tokens, -1), jnp.ones(length)) / length


@pytest.mark.parametrize('kind', [pytest.param('int8', marks=pytest.mark.slow), 'nf4'])
def test_adapters_train_on_a_quantised_base(tiny_params, kind):
  """The very gradient of the base made wide, and twenty steps along it lower the loss."""
  params = _quantised(tiny_params, kind)
  wide = params | {'layers': {
    name: leaf | {'kernel': quant.dequantize(
      leaf['kernel'], TINY.projection_shape(name)[0], jnp.float32)}
    if name in PROJECTIONS else leaf for name, leaf in params['layers'].items()}}
  adapter = init_adapter(jax.random.key(0), TINY, LoraConfig(4, 16.0, PROJECTIONS))
  adapter = jax.tree.map(lambda x: x + 0.02, adapter)
  gradient = jax.jit(jax.value_and_grad(lambda a, p: _loss(TINY, p, a)))
  first, found = gradient(adapter, params)
  _, expected = gradient(adapter, wide)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found, expected)
  for _ in range(20):
    last, step = gradient(adapter, params)
    adapter = jax.tree.map(lambda p, g: p - 0.1 * g / (jnp.abs(g).max() + 1e-9), adapter, step)
  assert float(last) < 0.9 * float(first)


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_one_layer_is_wide_at_a_time(remat):
  """The gradient's working memory holds no wide copy of all layers.

  24 layers of 256 x 512 kernels are 88 MB in float32; what a layer needs is a twenty-fourth.
  """
  config = dataclasses.replace(
    TINY, hidden_size=256, intermediate_size=512, num_layers=24, num_heads=8, num_kv_heads=8,
    head_dim=32, rope_divisors=())
  shape = params_shape(config, Placement(jnp.float32, 'nf4'))
  wide = params_shape(config, Placement(jnp.float32))
  kernels = sum(x.size * 4 for x in jax.tree.leaves(wide['layers']))
  adapter = jax.eval_shape(
    lambda: init_adapter(jax.random.key(0), config, LoraConfig(2, 2.0, ('q_proj',))))
  # Few tokens, so that what is kept of the activations is small beside the kernels.
  compiled = jax.jit(jax.grad(lambda a, p: _loss(config, p, a, remat, length=4))).lower(
    adapter, shape).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < kernels / 8


def test_bytes_of_the_8b_config():
  """Llama-3.1-8B in NF4, embedding and head in bfloat16: at most 6.3 GB (issue)."""
  config = dataclasses.replace(
    TINY, vocab_size=128_256, hidden_size=4096, intermediate_size=14336, num_layers=32,
    num_heads=32, num_kv_heads=8, head_dim=128, rope_divisors=())
  sizes = {}
  for kind in quant.QUANTIZATIONS:
    shape = params_shape(config, Placement(jnp.bfloat16, kind))
    sizes[kind] = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shape))
    assert shape['embedding'].dtype == shape['head'].dtype == jnp.bfloat16
  assert sizes['none'] == 16_060_522_496
  assert sizes['nf4'] <= 6.3e9 and sizes['int8'] <= 9.2e9


@pytest.mark.slow
def test_loss_on_real_sentences(smollm, real_sentences):
  """SmolLM2, next-token loss on 200 real sentences: int8 <= 1 %, NF4 <= 6 % over float32."""
  encoded = smollm.tokenizer(real_sentences[::5])['input_ids']
  assert len(encoded) == 200
  width, rows = 128, [[]]
  for one in encoded:
    if sum(map(len, rows[-1])) + len(one[:width]) > width:
      rows.append([])
    rows[-1].append(one[:width])
  rows += [[]] * (-len(rows) % 4)
  tokens, positions, segments = np.zeros((3, len(rows), width), np.int32)
  for row, sentences in enumerate(rows):
    at = 0
    for number, one in enumerate(sentences):
      where = row, slice(at, at + len(one))
      tokens[where], positions[where], segments[where] = one, np.arange(len(one)), number + 1
      at += len(one)
  following = np.roll(segments, -1, axis=1)
  following[:, -1] = 0
  weights = ((segments == following) & (segments > 0)).astype(np.float32)
  model = Llama(smollm.config, packed_attention)

  @jax.jit
  def loss(params, tokens, positions, segments, weights):
    hidden, _ = model.apply(
      {'params': params, 'lora': {}}, tokens.reshape(-1), positions.reshape(-1), None,
      (jnp.zeros(0, bool), segments))
    return weighted_nll(
      HEAD_BLOCK, 1, hidden, head_weight(params), jnp.roll(tokens, -1, axis=1).reshape(-1),
      weights.reshape(-1))

  def mean(params):
    parts = (np.split(x, 4) for x in (tokens, positions, segments, weights))
    return sum(float(loss(params, *part)) for part in zip(*parts, strict=True)) / weights.sum()

  exact = mean(smollm.params)
  assert 2 < exact < 6
  rise = {kind: mean(_quantised(smollm.params, kind)) / exact - 1 for kind in ('int8', 'nf4')}
  print(f'loss {exact:.4f}, rise {rise}')
  assert -0.005 < rise['int8'] <= 0.01 and 0 < rise['nf4'] <= 0.06


@pytest.mark.slow
def test_loading_quantises_as_it_reads(tmp_path):
  """A folder loaded in NF4 holds what quantising the loaded kernels gives."""
  from families import FAMILIES, build, save
  folder = save(build(FAMILIES['qwen3']), tmp_path)
  wide, found = load_model(folder).params, load_model(folder, Placement(jnp.float32, 'nf4')).params
  jax.tree.map(
    np.testing.assert_array_equal, found,
    _quantised({**wide, 'layers': dict(wide['layers'])}, 'nf4'))

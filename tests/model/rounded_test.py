"""Rounded products: operands in bfloat16, sums in float32, forward, backward and while decoding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from fedmedjax.model import batching, quant
from fedmedjax.model.decode import cached_attention
from fedmedjax.model.files.convert import Placement, params_shape
from fedmedjax.model.files.load import load_model
from fedmedjax.model.llama import PROJECTIONS, Llama
from fedmedjax.model.lora import LoraConfig, init_adapter
from fedmedjax.model.loss import packed_attention, packed_choices, packed_loss
from fedmedjax.model.speculation import END
from fedmedjax.types import Batch

LORA = LoraConfig(4, 8.0, PROJECTIONS)
BF16 = jnp.bfloat16


@pytest.fixture(scope='module')
def bases(tiny_params) -> dict:
  """The same weights, as float32 and for rounded products."""
  layers = {
    name: leaf | {'kernel': quant.rounded(leaf['kernel'])} if 'kernel' in leaf else leaf
    for name, leaf in tiny_params['layers'].items()}
  return {'wide': tiny_params, 'rounded': tiny_params | {
    'layers': layers, 'head': tiny_params['head'].astype(BF16)}}


@pytest.fixture(scope='module')
def batch() -> Batch:
  """Two rows of two examples each behind an instruction of seven tokens."""
  rng = np.random.default_rng(1)
  rows, index = np.repeat([0, 1], 6), np.tile([3, 4, 5, 9, 10, 11], 2)
  return Batch(
    prefix=rng.integers(3, 97, 7).astype(np.int32), prefix_targets=np.zeros(0, np.int32),
    prefix_weight=np.zeros(0, np.float32), tokens=rng.integers(3, 97, (2, 12)).astype(np.int32),
    positions=np.tile(7 + np.arange(6, dtype=np.int32), (2, 2)),
    segments=np.repeat([[1, 2]] * 2, 6, axis=1).astype(np.int32),
    target_row=rows.astype(np.int32), target_index=index.astype(np.int32),
    targets=rng.integers(3, 97, 12).astype(np.int32), target_weight=np.ones(12, np.float32))


def of_adapter(adapter, base, batch, remat):
  return packed_loss(
    Llama(TINY, packed_attention, lora_scale=2.0, remat=remat), adapter, base, batch)[0] / 12


@pytest.fixture(scope='module')
def gradient():
  return jax.jit(jax.value_and_grad(of_adapter), static_argnums=3)


def test_a_product_by_hand():
  """257 needs nine bits and 257 * 3 too: rounded to eight they are 256, while 3 * 3 + 256 * 3 = 777
  is added up whole. The gradient 257 of an output meets the kernel as 256.
  """
  x, kernel = jnp.asarray([[3.0, 257.0]]), jnp.asarray([[3.0], [3.0]], BF16)
  y, pull = jax.vjp(lambda x: quant.matmul(x, quant.Rounded(kernel)), x)
  assert y.dtype == jnp.float32 and y.tolist() == [[777.0]]
  assert pull(jnp.asarray([[257.0]]))[0].tolist() == [[768.0, 768.0]]
  assert (x @ kernel.astype(jnp.float32)).tolist() == [[780.0]]
  with pytest.raises(TypeError, match='the kernel is frozen'):
    jax.grad(lambda kernel: quant.rounded_product(x, kernel).sum())(kernel)


@pytest.mark.parametrize('kind', list(quant.QUANTIZATIONS))
def test_gradient_is_that_of_operands_cast_by_hand(kind):
  """As of the same sums in float64, of operands that were rounded before, for sites at once, too.
  """
  x, kernel, upper = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(
    ((3, 5, 40), (40, 8), (3, 5, 8))))
  stored = kernel if kind == 'none' else quant.QUANTIZATIONS[kind](kernel)
  y, pull = jax.vjp(jax.vmap(lambda x: quant.matmul(x, quant.rounded(stored))), x)
  cast = [np.asarray(array.astype(BF16), np.float64) for array in (
    x, quant.dequantize(stored, 40, jnp.float32), upper)]
  np.testing.assert_allclose(y, cast[0] @ cast[1], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(pull(upper)[0], cast[2] @ cast[1].T, rtol=1e-5, atol=1e-5)


def test_training_stays_near_float32(bases, batch, gradient):
  """Ten steps: losses within 1e-2, though no two are equal."""
  losses = {}
  for name, base in bases.items():
    adapter, losses[name] = init_adapter(jax.random.key(0), TINY, LORA), []
    for _ in range(10):
      loss, step = gradient(adapter, base, batch, 'none')
      losses[name].append(float(loss))
      adapter = jax.tree.map(lambda p, g: p - 0.01 * g / (jnp.abs(g).max() + 1e-9), adapter, step)
  wide, rounded = map(np.asarray, losses.values())
  assert wide[-1] < 0.9 * wide[0] and (wide != rounded).all()
  np.testing.assert_allclose(rounded, wide, rtol=1e-2)


def equations(jaxpr):
  """All of a traced program, those of loops and calls in it, too."""
  for equation in jaxpr.eqns:
    yield equation
    for part in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, 'eqns')):
      inner = getattr(part, 'jaxpr', part)
      if hasattr(inner, 'eqns'):
        yield from equations(inner)


def uses(base, batch, remat, cast=lambda base: base) -> tuple[set, set, set]:
  """Of a step's gradient: formats that arrays of a weight's shape are changed to, formats of the
  operands of products with such an array, and such arrays that a loop hands on, as copies."""
  adapter = init_adapter(jax.random.key(0), TINY, LORA)
  shapes = {TINY.projection_shape(name) for name in PROJECTIONS} | {(97, 24)}
  frozen = {size for shape in shapes for size in (shape, shape[::-1], (2, *shape), (1, *shape))}
  casts, operands, copies = set(), set(), set()
  for equation in equations(jax.make_jaxpr(jax.grad(lambda adapter, base: of_adapter(
      adapter, cast(base), batch, remat)))(adapter, base).jaxpr):
    taken = [variable.aval for variable in equation.invars if hasattr(variable.aval, 'shape')]
    if any(one.shape in frozen for one in taken):
      if equation.primitive.name == 'convert_element_type':
        casts.add(str(equation.outvars[0].aval.dtype))
      if equation.primitive.name == 'dot_general':
        operands |= {str(one.dtype) for one in taken}
    if equation.primitive.name == 'scan':
      copies |= {one.aval.shape for one in equation.outvars} & frozen
  return casts, operands, copies


@pytest.mark.parametrize('remat', ['none', 'products'])
def test_the_base_is_cast_by_no_step(bases, batch, remat):
  """Each product with a frozen weight, forward and backward, is of two operands in bfloat16, and no
  weight changes its format or is kept twice; a base that is cast in every step is noticed."""
  assert uses(bases['rounded'], batch, remat) == (set(), {'bfloat16'}, set())
  assert uses(bases['wide'], batch, remat) == (set(), {'float32'}, set())
  assert uses(bases['wide'], batch, remat, lambda base: base | {
    'head': base['head'].astype(BF16)})[0] == {'bfloat16'}


def test_answers_are_decoded_and_forced_in_it(bases, batch):
  """As the likeliest by hand, from the last hidden states; decoding says what forcing chooses."""
  model = Llama(TINY, packed_attention)
  adapter = init_adapter(jax.random.key(0), TINY, LORA)
  choices = jax.jit(partial(packed_choices, model))(adapter, bases['rounded'], batch)
  assert choices.shape == (12,) and choices.dtype == jnp.int32
  prefix, question = np.array([5, 9, 11], np.int32), np.array([11, 20, 31], np.int32)
  said, = batching.decode(
    batching.decoder(Llama(TINY, cached_attention), 1), {}, bases['rounded'], prefix,
    [batching.Question(question, 12)], eos=[-1], pieces=np.asarray([END]), rows=1,
    advance=lambda n: None)
  whole = np.concatenate([prefix, question, said.tokens])
  hidden, _ = model.apply(
    {'params': bases['rounded']}, whole, np.arange(len(whole)), None,
    (np.zeros(0, bool), np.ones((1, len(whole)), np.int32)))
  logits = np.asarray(hidden.astype(BF16), np.float32) @ np.asarray(
    bases['rounded']['head'], np.float32).T
  assert said.tokens.tolist() == logits[5:-1].argmax(-1).tolist() and len(said.tokens) == 12


@pytest.mark.parametrize('kind', ['none', pytest.param('int8', marks=pytest.mark.slow)])
def test_loading_rounds_once(tiny_folder, kind):
  """A tied model: kernels in bfloat16 only, and a head that is the embedding's copy in it."""
  wide = load_model(tiny_folder, Placement(quantization=kind))
  placement = Placement(quantization=kind, rounded=True)
  found = load_model(tiny_folder, placement).params
  assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(
    lambda x: (x.shape, x.dtype), params_shape(wide.config, placement))
  assert set(found) - set(wide.params) == {'head'} and found['head'].dtype == BF16
  layers = {
    name: leaf | {'kernel': quant.rounded(leaf['kernel'])} if 'kernel' in leaf else leaf
    for name, leaf in wide.params['layers'].items()}
  jax.tree.map(np.testing.assert_array_equal, found, wide.params | {
    'layers': layers, 'head': wide.params['embedding'].astype(BF16)})

"""Packed rows are exactly one padded row per example; the head loss is exactly its formula."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from fedmedjax.data import pack, step_order
from fedmedjax.data.groups import deal
from fedmedjax.data.layout import rows_layout
from fedmedjax.data.tokenize import TokenExample
from fedmedjax.fed.gradient import over_groups
from fedmedjax.model.llama import PROJECTIONS, Llama, head_weight
from fedmedjax.model.lora import LoraConfig, init_adapter
from fedmedjax.model.loss import packed_attention, packed_choices, packed_loss, weighted_nll
from fedmedjax.types import Batch

LORA = LoraConfig(4, 8.0, PROJECTIONS)


def examples(rng, instruction, lengths):
  return [
    TokenExample(np.concatenate([instruction[-1:], rng.integers(3, 97, n - 1)]).astype(np.int32),
                 max(1, n // 3))
    for n in lengths]


def one_row_each(instruction, members, loss_on) -> Batch:
  """The plain way: every example in a padded row of its own behind its own instruction."""
  whole = [
    TokenExample(np.concatenate([instruction[:-1], member.tokens]),
                 len(instruction) - 1 + member.prompt_length) for member in members]
  width = max(len(example.tokens) for example in whole)
  shape = pack.RowShape(0, len(whole), width, width - 1)
  rows = [
    pack.pack(whole[0].tokens[:1], [example], shape._replace(rows=1), loss_on)
    for example in whole]
  rows = [row._replace(target_row=row.target_row + place) for place, row in enumerate(rows)]
  return Batch(*rows[0][:3], *map(np.concatenate, list(zip(*rows, strict=True))[3:]))


def loss_and_gradient(dtype, params, batch, groups=1, *more):
  """Of a step, or the list of those of several steps of one shape."""
  model = Llama(TINY, packed_attention, lora_scale=LORA.scale, dtype=dtype)
  adapter = jax.tree.map(
    lambda x: (x + 0.1 * jax.random.normal(jax.random.key(7), x.shape)).astype(dtype),
    init_adapter(jax.random.key(0), TINY, LORA))
  params = jax.tree.map(lambda x: x.astype(dtype), params)

  @jax.jit
  @jax.value_and_grad
  def mean(adapter, batch):
    total, weight = over_groups(partial(packed_loss, model), groups)(adapter, params, batch)
    return total / weight

  # To numpy while float64 is still enabled.
  found = [jax.device_get(mean(adapter, jax.tree.map(
    lambda x: x.astype(dtype) if x.dtype == np.float32 else x, step))) for step in (batch, *more)]
  return found if more else found[0]


def check_equal(packed, plain, tolerance):
  """Loss and every gradient leaf, relative to the leaf's norm."""
  assert abs(packed[0] - plain[0]) <= tolerance * abs(plain[0])
  for path, leaf in jax.tree_util.tree_leaves_with_path(plain[1]):
    other = dict(jax.tree_util.tree_leaves_with_path(packed[1]))[path]
    norm = np.linalg.norm(leaf)
    assert norm > 0, path
    assert np.linalg.norm(other - leaf) <= tolerance * norm, path


@pytest.mark.parametrize('loss_on', pack.LOSS_ON)
@pytest.mark.parametrize('dtype, tolerance', [(jnp.float32, 1e-5), (jnp.float64, 1e-10)])
def test_packed_rows_equal_one_padded_row_each(tiny_params, loss_on, dtype, tolerance):
  """8 examples of unlike lengths in a few rows, behind an instruction of 11 tokens, padded to 32 as
  when another task's has 27."""
  rng = np.random.default_rng(0)
  instruction = rng.integers(3, 97, 12).astype(np.int32)
  members = examples(rng, instruction, [9, 17, 5, 30, 12, 21, 7, 16])
  shape = pack.plan_shape([members], 27, loss_on)
  assert shape.prefix == 32 and shape.rows < len(members)
  with jax.enable_x64(dtype == jnp.float64):
    packed = loss_and_gradient(dtype, tiny_params, pack.pack(instruction, members, shape, loss_on))
    plain = loss_and_gradient(dtype, tiny_params, one_row_each(instruction, members, loss_on))
  check_equal(packed, plain, tolerance)


@pytest.mark.parametrize('loss_on, dtype, tolerance', [
  ('completion', jnp.float32, 1e-5), ('all', jnp.float64, 1e-12)])
def test_groups_of_rows_teach_what_the_whole_step_does(tiny_params, loss_on, dtype, tolerance):
  """The same 8 examples in 3 groups of 3, 3 and 2, each behind the instruction. Planted: a group
  that counts by half must be seen."""
  rng = np.random.default_rng(0)
  instruction = rng.integers(3, 97, 12).astype(np.int32)
  members, part = examples(rng, instruction, [9, 17, 5, 30, 12, 21, 7, 16]), SimpleNamespace(
    instruction=instruction)
  whole, layout = (rows_layout(pack.plan_shape(
    deal(members, groups), 27, loss_on), loss_on, groups=groups) for groups in (1, 3))
  batch = layout.pack(part, members)
  half = np.array([1, 0.5, 1], np.float32)[:, None]
  broken = batch._replace(
    target_weight=batch.target_weight * half, prefix_weight=batch.prefix_weight * half)
  with jax.enable_x64(dtype == jnp.float64):
    plain = loss_and_gradient(dtype, tiny_params, whole.pack(part, members))
    found, wrong = loss_and_gradient(dtype, tiny_params, batch, 3, broken)
  check_equal(found, plain, tolerance)
  with pytest.raises(AssertionError):
    check_equal(wrong, plain, 1e-2)


@pytest.mark.parametrize('fault', ['positions', 'segments', 'weight', 'row'])
def test_a_planted_packing_error_is_seen(tiny_params, fault):
  """Positions that restart, segments that see each other, a lost target, targets looked for in the
  first row: each must differ."""
  rng = np.random.default_rng(0)
  instruction = rng.integers(3, 97, 12).astype(np.int32)
  members = examples(rng, instruction, [9, 17, 5, 30, 12, 21, 7, 16])
  shape = pack.plan_shape([members], 11, 'completion')
  batch = pack.pack(instruction, members, shape, 'completion')
  assert shape.rows > 1
  plain = loss_and_gradient(jnp.float32, tiny_params, batch)
  broken = {
    'positions': batch._replace(positions=batch.positions - 11 * (batch.segments > 1)),
    'segments': batch._replace(segments=np.minimum(batch.segments, 1)),
    'weight': batch._replace(target_weight=batch.target_weight * (batch.target_index > 0) * (
      np.arange(shape.targets) > 0)),
    'row': batch._replace(target_row=0 * batch.target_row),
  }[fault]
  with pytest.raises(AssertionError):
    check_equal(loss_and_gradient(jnp.float32, tiny_params, broken), plain, 1e-5)


def test_choices_are_the_likeliest_tokens_after_the_right_text(tiny_params):
  """Of packed rows the same as of whole logits [tokens, V], one sequence at a time."""
  rng = np.random.default_rng(1)
  instruction = rng.integers(3, 97, 12).astype(np.int32)
  members = examples(rng, instruction, [9, 17, 5, 30, 12])
  shape = pack.plan_shape([members], 11, 'completion')
  model = Llama(TINY, packed_attention)
  chosen = iter(jax.jit(partial(packed_choices, model))(
    {}, tiny_params, pack.pack(instruction, members, shape, 'completion')).tolist())

  @jax.jit
  def likeliest(tokens, segments):
    hidden, _ = model.apply({'params': tiny_params, 'lora': {}}, tokens, np.arange(42), None, (
      np.zeros(0, bool), segments))
    return (hidden @ head_weight(tiny_params).T).argmax(-1)

  for row in pack.fit_rows([len(member.tokens) for member in members], shape.width):
    for member in (members[i] for i in row):
      whole = np.concatenate([instruction[:-1], member.tokens])
      padded = np.zeros((2, 42), np.int32)
      padded[0, :len(whole)], padded[1, :len(whole)] = whole, 1
      expected = likeliest(padded[0], padded[1:])[10 + member.prompt_length:len(whole) - 1]
      assert expected.tolist() == [next(chosen) for _ in expected]


@pytest.mark.slow
def test_smollm_packing_on_real_notes(smollm, data_folder):
  """Real NER batches of 8: the same loss and gradient, at least 2.2 times fewer tokens."""
  from fedmedjax.data.formats.corpora import load_corpus
  from fedmedjax.data.site import encode_site

  corpus = load_corpus('maccrobat2020', data_folder)
  site = encode_site(
    corpus, smollm.tokenizer, max_length=256, max_train_notes=40, max_test=1)
  (site,) = site.tasks
  lengths = np.asarray([len(example.tokens) for example in site.train])
  steps = [
    [site.train[i] for i in members] for members in step_order.site_steps(lengths, 8, 0, 0, 0, 20)]
  shape = pack.plan_shape(steps, len(site.instruction) - 1, 'completion')
  padded = [
    8 * (len(site.instruction) - 1 + max(len(e.tokens) for e in step)) for step in steps]
  assert np.mean(padded) / shape.tokens >= 2.2

  model = Llama(smollm.config, packed_attention, lora_scale=4.0)
  adapter = jax.tree.map(
    lambda x: x + 0.01, init_adapter(
      jax.random.key(0), smollm.config, LoraConfig(16, 64.0, ('q_proj', 'v_proj', 'down_proj'))))
  step = steps[0]

  @jax.jit
  def gradient(adapter, params, batch):
    def mean(adapter):
      total, weight = packed_loss(model, adapter, params, batch)
      return total / weight
    return jax.value_and_grad(mean)(adapter)

  packed = gradient(
    adapter, smollm.params, pack.pack(site.instruction, step, shape, 'completion'))
  plain = gradient(adapter, smollm.params, one_row_each(site.instruction, step, 'completion'))
  check_equal(packed, plain, 1e-5)


# The second has logits a hundred apart, rising and falling: exponentials of the wrong peak would
# overflow or vanish. Of its gradient two rows of the head are subtracted, of up to 60, in steps of
# 60 * 2^-24 = 4e-6.
@pytest.mark.parametrize('spread, tolerance', [(0.0, 1e-6), (60.0, 4e-6)])
def test_weighted_nll_is_its_formula_a_block_of_words_at_a_time(spread, tolerance):
  """Against log_softmax by autodiff; 11 words in blocks of 1 to all of them, some left over."""
  rng = np.random.default_rng(2)
  hidden, head = (
    jnp.asarray(rng.normal(size=(rows, 5)), jnp.float32) for rows in (7, 11))
  if spread:
    head = head.at[:, 0].set(jnp.linspace(-spread, spread, 11))
    hidden = hidden.at[:, 0].set(jnp.linspace(-1.0, 1.0, 7))
  targets = jnp.asarray(rng.integers(0, 11, 7), jnp.int32)
  weights = jnp.asarray(rng.random(7), jnp.float32)

  def reference(hidden):
    logp = jax.nn.log_softmax(hidden @ head.T)
    return -jnp.sum(weights * logp[jnp.arange(7), targets])

  expected, slope = jax.value_and_grad(reference)(hidden)
  for block in (1, 2, 3, 4, 11, 100):
    value, gradient = jax.value_and_grad(
      partial(weighted_nll, block, 1), argnums=0)(hidden, head, targets, weights)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=tolerance)
    # Without differentiation another code path runs.
    np.testing.assert_allclose(
      weighted_nll(block, 1, hidden, head, targets, weights), expected, rtol=1e-6)


def test_capped_logits():
  """Logits of 3 tanh(x / 3), in blocks of 4 of 11 words: value and slope are those of autodiff."""
  rng = np.random.default_rng(5)
  hidden, head = (jnp.asarray(rng.normal(size=(n, 5)), jnp.float32) for n in (7, 11))
  targets, weights = jnp.asarray(rng.integers(0, 11, 7), jnp.int32), jnp.linspace(0.1, 1.0, 7)

  def reference(hidden):
    logp = jax.nn.log_softmax(3.0 * jnp.tanh(hidden @ head.T / 3.0))
    return -jnp.sum(weights * logp[jnp.arange(7), targets])

  expected, slope = jax.value_and_grad(reference)(hidden)
  value, gradient = jax.value_and_grad(partial(weighted_nll, 4, 1, cap=3.0))(
    hidden, head, targets, weights)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-6)
  assert abs(value - weighted_nll(4, 1, hidden, head, targets, weights)) > 0.1


def test_a_head_in_parts_is_the_same():
  """12 words as two parts of 6 and three of 4, in blocks of 2 of each, and with some left over."""
  rng = np.random.default_rng(4)
  hidden, head = (jnp.asarray(rng.normal(size=(n, 5)), jnp.float32) for n in (12, 12))
  rest = hidden, head, jnp.arange(12, dtype=jnp.int32), jnp.ones(12)
  expected, slope = jax.value_and_grad(partial(weighted_nll, 12, 1))(*rest)
  for most, parts in ((4, 2), (6, 2), (5, 2), (6, 3), (9, 3), (1, 1), (1, 3)):
    value, gradient = jax.value_and_grad(partial(weighted_nll, most, parts))(*rest)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-6)


def test_blocks_under_vmap_and_in_bfloat16():
  """Two sites at once, 12 words in blocks of 4: each as alone. In bfloat16 within its rounding of
  the float32 loss, and the gradient within a hundredth of its length."""
  rng = np.random.default_rng(3)
  hidden = jnp.asarray(rng.normal(size=(2, 6, 8)), jnp.float32)
  head = jnp.asarray(rng.normal(size=(12, 8)), jnp.float32)
  targets = jnp.asarray(rng.integers(0, 12, (2, 6)), jnp.int32)
  weights = jnp.asarray(rng.random((2, 6)), jnp.float32)
  one = jax.value_and_grad(partial(weighted_nll, 4, 1))
  values, slopes = jax.vmap(one, (0, None, 0, 0))(hidden, head, targets, weights)
  for site in range(2):
    value, slope = one(hidden[site], head, targets[site], weights[site])
    np.testing.assert_allclose(values[site], value, rtol=1e-6)
    np.testing.assert_allclose(slopes[site], slope, rtol=1e-5, atol=1e-6)
  rough = [x.astype(jnp.bfloat16) for x in (hidden[0], head)]
  value, slope = one(*rough, targets[0], weights[0])
  # Of the same numbers, so that only the calculation rounds.
  exact, expected = one(*(x.astype(jnp.float32) for x in rough), targets[0], weights[0])
  assert value.dtype == jnp.float32 and slope.dtype == jnp.bfloat16
  np.testing.assert_allclose(value, exact, rtol=1e-5)
  assert np.linalg.norm(slope - expected) < 0.01 * np.linalg.norm(expected)


def test_a_gradient_for_the_frozen_head_is_refused():
  with pytest.raises(TypeError, match='head is frozen'):
    jax.grad(lambda head: weighted_nll(
      4, 1, jnp.ones((2, 3)), head, jnp.zeros(2, jnp.int32), jnp.ones(2)))(jnp.ones((5, 3)))

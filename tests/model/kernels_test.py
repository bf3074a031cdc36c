"""Kernels of attention give what the plain one gives; one that does not is not chosen."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from fedmedjax.data import pack
from fedmedjax.data.tokenize import TokenExample
from fedmedjax.model import kernels
from fedmedjax.model.attention import Window, attend
from fedmedjax.model.flash import Tiling, flash_attend
from fedmedjax.model.llama import Llama
from fedmedjax.model.lora import LoraConfig, init_adapter
from fedmedjax.model.loss import packed_attention, packed_loss
from fedmedjax.types import InputError


def dense(q, k, v, mask):
  """The library's own plain formula, behind the signature of cuDNN's kernel."""
  return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation='xla')


def one_key_more(q, k, v, mask):
  """As a kernel that looks past the present token: `dense` with a mask shifted by a key."""
  return dense(q, k, v, mask | jnp.roll(mask, 1, axis=-1))


@pytest.mark.parametrize('prefix, width, window', [
  (6, 8, None), pytest.param(7, 5, None, marks=pytest.mark.slow), (6, 8, 4), (0, 5, 3)])
def test_a_packed_pass_is_the_same_under_vmap_with_its_gradient(prefix, width, window):
  """Odd numbers of queries and keys, two sites, no instruction at all, and a sliding window."""
  sites, rows, tokens = 2, 3, prefix + 3 * width
  rng = np.random.default_rng(0)
  q, towards = rng.normal(size=(2, sites, tokens, 4, 8)).astype(np.float32)
  k, v = rng.normal(size=(2, sites, tokens, 2, 8)).astype(np.float32)
  segments = np.tile(np.r_[[1] * 2, [2] * (width - 3), 0], (sites, rows, 1)).astype(np.int32)
  valid = jnp.arange(prefix) < prefix - 2
  positions = jnp.concatenate(
    [jnp.arange(prefix), jnp.tile(prefix - 2 + jnp.arange(width), rows)]).astype(jnp.int32)

  def both(how):
    def one(q, k, v, segments, towards):
      seen = None if window is None else Window(positions, jnp.int32(window))
      out, pull = jax.vjp(
        lambda *x: packed_attention(*x, None, (valid, segments), seen, attend=how)[0], q, k, v)
      return out, *pull(towards)

    return jax.jit(jax.vmap(one))(q, k, v, segments, towards)

  for plain, found in zip(both(attend), both(kernels.fused_attend(dense)), strict=True):
    np.testing.assert_allclose(found, plain, atol=2e-5)


@pytest.mark.parametrize('remat', [pytest.param('none', marks=pytest.mark.slow), 'products'])
def test_a_step_of_the_model_is_the_same(remat, tiny_params):
  """Loss and gradient of two sites' adapters, through the scan over layers and what it keeps."""
  rng = np.random.default_rng(1)
  instruction = rng.integers(3, 97, 12).astype(np.int32)
  members = [
    TokenExample(np.r_[instruction[-1:], rng.integers(3, 97, n)].astype(np.int32), n // 2)
    for n in (9, 20, 14)]
  batch = pack.pack(
    instruction, members, pack.plan_shape([members], 11, 'completion'), 'completion')
  adapters = jax.tree.map(
    lambda x: jnp.stack([x, x + 0.02]),
    init_adapter(jax.random.key(0), TINY, LoraConfig(4, 8.0, ('q_proj', 'v_proj'))))

  def gradients(how):
    model = Llama(TINY, partial(packed_attention, attend=how), lora_scale=2.0, remat=remat)
    return jax.jit(jax.vmap(jax.value_and_grad(
      lambda adapter: packed_loss(model, adapter, tiny_params, batch)[0])))(adapters)

  plain = jax.tree.leaves(gradients(attend))
  for how in (kernels.fused_attend(dense), flash_attend(Tiling(512, 512, False, interpret=True))):
    for expected, found in zip(plain, jax.tree.leaves(gradients(how)), strict=True):
      assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


def test_the_distance_tells_a_kernel_that_sees_a_key_too_many(trial):
  heads = (4, 2, 8, jnp.bfloat16)
  near, far = map(kernels.fused_attend, (dense, one_key_more))
  assert kernels.distance(near, *heads) < kernels.FARTHER
  assert kernels.distance(far, *heads) > 10 * kernels.FARTHER


@pytest.fixture(scope='module')
def trial():
  """A smaller one; each kernel is tried once."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(kernels, '_TRIAL', (2, 21, 13))
    kernels.distance.cache_clear()
    yield
  kernels.distance.cache_clear()


def _raises(*arrays):
  raise RuntimeError('no such library\nand a trace')


@pytest.mark.parametrize('call, dtype, mesh, why', [
  (one_key_more, jnp.bfloat16, None, r'its results are \d+ times as far from float32'),
  (lambda q, *_: q * jnp.nan, jnp.bfloat16, None, 'its results are nan times'),
  (_raises, jnp.bfloat16, None, "RuntimeError: no such library; 'plain' is allowed"),
  (dense, jnp.float32, None, 'the model is in float32'),
  (dense, jnp.bfloat16, 'a mesh', 'it was never tried on several devices'),
])
def test_on_a_gpu_what_is_wrong_is_refused(call, dtype, mesh, why, trial, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert kernels.cudnn(TINY, jnp.bfloat16, None, call=dense) is not attend
  with pytest.raises(InputError, match=rf"config\.model\.attention='cudnn': {why}"):
    kernels.cudnn(TINY, dtype, mesh, call=call)
  assert kernels.ATTENTIONS['plain'](TINY, dtype, mesh) is attend


def test_a_model_that_caps_its_scores_has_the_plain_kernel(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  capped = dataclasses.replace(TINY, score_cap=50.0)
  with pytest.raises(InputError, match="'cudnn': the kernel does not cap scores, .* 50; 'plain'"):
    kernels.cudnn(capped, jnp.bfloat16, None, call=dense)
  assert kernels.ATTENTIONS['plain'](capped, jnp.bfloat16, None) is attend
  with pytest.raises(ValueError, match='does not cap'):
    kernels.fused_attend(dense)(jnp.ones((1, 2, 2, 4)), (), 50.0)


def test_without_a_gpu_there_is_none():
  with pytest.raises(InputError, match=r"config\.model\.attention='cudnn': .* computes on cpu"):
    kernels.cudnn(TINY, jnp.bfloat16, None)


def test_its_gradient_is_lowered_to_cudnns_kernel_for_a_gpu(monkeypatch):
  """For two sites at once, with its gradient, on a machine without one: what JAX asks the card is
  answered here. That the kernel itself is right, a GPU has to say (the test below)."""
  from jax._src.cudnn import fused_attention_stablehlo as library
  monkeypatch.setattr(library, 'check_cudnn_version', lambda: 91_000)
  monkeypatch.setattr(library, 'check_compute_capability', lambda capability: True)
  monkeypatch.setattr(library, 'is_cuda_compute_capability_equal', lambda capability: False)
  how = kernels.fused_attend(kernels.cudnn_call)

  def loss(q, k, v, segments):
    out, _ = packed_attention(q, k, v, None, (jnp.ones(7, bool), segments), attend=how)
    return jnp.sum(out.astype(jnp.float32))

  q = jax.ShapeDtypeStruct((2, 7 + 2 * 9, 4, 16), jnp.bfloat16)
  k = jax.ShapeDtypeStruct((2, 7 + 2 * 9, 2, 16), jnp.bfloat16)
  segments = jax.ShapeDtypeStruct((2, 2, 9), jnp.int32)
  text = jax.jit(jax.vmap(jax.grad(loss, (0, 1, 2)))).trace(q, k, k, segments).lower(
    lowering_platforms=('cuda',)).as_text()
  assert re.search(r'__cudnn\$fmhaScaleBiasSoftmax\b', text)
  assert '__cudnn$fmhaScaleBiasSoftmaxBackward' in text


@pytest.mark.gpu
@pytest.mark.parametrize('heads, kv_heads, head_dim', [(32, 8, 128), (32, 8, 64), (9, 3, 64)])
def test_cudnns_kernel_on_this_gpu(heads, kv_heads, head_dim):
  kernel = kernels.fused_attend(kernels.cudnn_call)
  assert kernels.distance(kernel, heads, kv_heads, head_dim, jnp.bfloat16) < kernels.FARTHER

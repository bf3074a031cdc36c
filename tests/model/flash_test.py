"""The Pallas kernels give the plain averages and gradients, interpreted; accelerators get them."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from fedmedjax.model import flash, kernels
from fedmedjax.model.attention import Window, attend
from fedmedjax.model.loss import packed_attention
from fedmedjax.types import InputError

SITES, ROWS, PREFIX, WIDTH = 2, 3, 20, 21


def gradients(how, prefix: int, window: int | None):
  """[averages, gradients of q, k, v] of a packed pass of two sites.

  Four query heads share two key heads. A row has two segments and three places of padding, which
  attend to each other; the instruction ends in two places of padding. Scores are large, so that
  they differ by tens and a lost maximum shows.
  """
  rng = np.random.default_rng(0)
  tokens = prefix + ROWS * WIDTH
  q, towards = rng.normal(size=(2, SITES, tokens, 4, 8)).astype(np.float32)
  k, v = rng.normal(size=(2, SITES, tokens, 2, 8)).astype(np.float32)
  segments = np.tile(np.r_[[1] * 5, [2] * (WIDTH - 8), [0] * 3], (SITES, ROWS, 1)).astype(np.int32)
  segments[:, 1] = np.r_[[1] * (WIDTH - 1), 0]
  valid = jnp.arange(prefix) < prefix - 2
  positions = jnp.concatenate(
    [jnp.arange(prefix), jnp.tile(prefix - 2 + jnp.arange(WIDTH), ROWS)]).astype(jnp.int32)

  def of_site(q, k, v, segments, towards):
    seen = None if window is None else Window(positions, jnp.int32(window))
    out, pull = jax.vjp(
      lambda *x: packed_attention(*x, None, (valid, segments), seen, attend=how)[0], q, k, v)
    return out, *pull(towards)

  return jax.jit(jax.vmap(of_site))(3 * q, k, v, segments, towards)


def distance(ours, plain) -> float:
  return max(float(jnp.abs(x - y).max()) for x, y in zip(ours, plain, strict=True))


@pytest.fixture(scope='module')
def plain():
  return gradients(attend, PREFIX, None)


@pytest.mark.parametrize('query_bytes', [1, pytest.param(2 ** 20, marks=pytest.mark.slow)])
def test_a_packed_pass_is_the_plain_one_with_its_gradient(query_bytes, plain, monkeypatch):
  """Two tiles of queries and of keys of both sources; shared keys' gradients by row, or at once."""
  monkeypatch.setattr(flash, '_QUERY_BYTES', query_bytes)
  ours = gradients(flash.flash_attend(flash.tiling('cpu')), PREFIX, None)
  assert distance(ours, plain) < 2e-5


@pytest.mark.parametrize('prefix, window', [
  (PREFIX, 9), pytest.param(0, None, marks=pytest.mark.slow)])
def test_a_window_hides_and_no_instruction_is_needed(prefix, window):
  """Cut as for a TPU: whole arrays that are no powers of two."""
  tiles = flash.Tiling(512, 512, False, interpret=True)
  ours = gradients(flash.flash_attend(tiles), prefix, window)
  assert distance(ours, gradients(attend, prefix, window)) < 2e-5


def _own_maximum(tiles, keys, step, carry, rule=flash._for_tiles):
  """Every source's exponentials from a maximum of its own, added as if from one."""
  if not isinstance(carry, tuple):
    return rule(tiles, keys, step, carry)
  peak, total, out = rule(
    tiles, keys, step, (jnp.full_like(carry[0], flash._HIDDEN), *map(jnp.zeros_like, carry[1:])))
  return peak, carry[1] + total, carry[2] + out


def _own_mean(tiles, queries, source, rule=flash._key_gradient):
  """Shared keys' gradient as if nothing of the other source were in the mean."""
  *rest, mean = queries
  return rule(tiles, (*rest, mean * (source.k.shape[1] > 1)), source)


@pytest.mark.parametrize('part, wrong, changed', [
  ('_for_tiles', _own_maximum, 0), ('_key_gradient', _own_mean, 2)])
def test_a_wrong_merge_is_noticed(part, wrong, changed, plain, monkeypatch):
  monkeypatch.setattr(flash, part, wrong)
  ours = gradients(flash.flash_attend(flash.tiling('cpu')), PREFIX, None)
  assert distance(ours[changed:changed + 1], plain[changed:changed + 1]) > 1e-2


@pytest.mark.parametrize('platform, backend, call', [
  ('tpu', 'tpu', 'tpu_custom_call'), ('cuda', 'gpu', 'triton')])
def test_its_gradient_is_lowered_for_machines_that_are_not_here(platform, backend, call):
  how = flash.flash_attend(flash.tiling(backend))

  def loss(q, k, v, segments):
    out, _ = packed_attention(q, k, v, None, (jnp.ones(7, bool), segments), attend=how)
    return jnp.sum(out.astype(jnp.float32))

  q = jax.ShapeDtypeStruct((2, 7 + 2 * 9, 4, 64), jnp.bfloat16)
  k = jax.ShapeDtypeStruct((2, 7 + 2 * 9, 2, 64), jnp.bfloat16)
  segments = jax.ShapeDtypeStruct((2, 2, 9), jnp.int32)
  text = jax.jit(jax.vmap(jax.grad(loss, (0, 1, 2)))).trace(q, k, k, segments).lower(
    lowering_platforms=(platform,)).as_text()
  assert call in text
  # Of the instruction and of the rows; shared keys and a row's own have a kernel each.
  for name, count in ('flash_forward', 2), ('flash_queries', 2), ('flash_keys', 3):
    assert text.count(name) >= count, name


@pytest.mark.parametrize('backend, apart, changes, mesh, why', [
  ('cpu', 1.0, {}, None, 'this machine computes on cpu'),
  ('tpu', 1.0, {'score_cap': 50.0}, None, 'the kernel does not cap scores, the model does at 50'),
  ('tpu', 1.0, {}, 'a mesh', 'it was never tried on several devices'),
  ('gpu', 300.0, {}, None, 'its results are 300 times as far from float32'),
  ('gpu', float('nan'), {}, None, 'its results are nan times')])
def test_where_it_cannot_be_had_it_is_refused(backend, apart, changes, mesh, why, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  monkeypatch.setattr(kernels, 'distance', lambda *_: apart)
  build = partial(kernels.ATTENTIONS['flash'], dataclasses.replace(TINY, **changes), jnp.bfloat16)
  with pytest.raises(InputError, match=f"config.model.attention='flash': {why}.*; 'plain' is"):
    build(mesh)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_an_accelerator_has_it_after_a_trial(dtype, monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  monkeypatch.setattr(kernels, 'distance', lambda kernel, *_: 1.0 if kernel is not attend else 9.0)
  how = kernels.ATTENTIONS['flash'](TINY, dtype, None)
  with pytest.raises(ValueError, match='does not cap'):
    how(jnp.ones((1, 2, 2, 4)), (), 50.0)


@pytest.mark.gpu
@pytest.mark.parametrize('heads, kv_heads, head_dim', [(32, 8, 128), (32, 8, 64), (9, 3, 64)])
def test_it_is_near_to_float32_on_this_gpu(heads, kv_heads, head_dim):
  how = flash.flash_attend(flash.tiling('gpu'))
  assert kernels.distance(how, heads, kv_heads, head_dim, jnp.bfloat16) < kernels.FARTHER

"""The Pallas kernels give the plain averages and gradients, interpreted; accelerators get them."""

import dataclasses
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from fedmedjax.model import flash, kernels
from fedmedjax.model.attention import Source, Window, attend
from fedmedjax.model.loss import packed_attention
from fedmedjax.types import InputError

sys.path.insert(0, str(Path(__file__).parents[2] / 'scripts'))
from absent import programs  # noqa: E402

SITES, ROWS, PREFIX, WIDTH = 2, 3, 20, 21
SMALL = flash.tiling('cpu')
# As for a TPU: whole arrays that are no powers of two.
WHOLE = flash.Tiling(512, 512, False, interpret=True)


def gradients(how, window: int | None = None, parts=slice(None)):
  """`parts` of (averages, gradients of q, of shared k and v, of rows' k and v) of two sites' rows.

  Four query heads share two key heads. A row has two segments and three places of padding, which
  attend to each other; the instruction ends in two places of padding. Scores are large, so that
  they differ by tens and a lost maximum shows.
  """
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=(SITES, *shape)).astype(np.float32)  # noqa: E731
  q, towards = 3 * draw(ROWS, WIDTH, 4, 8), draw(ROWS, WIDTH, 4, 8)
  shared = draw(2, PREFIX, 8), draw(2, PREFIX, 8)
  own = draw(2, ROWS, WIDTH, 8), draw(2, ROWS, WIDTH, 8)
  segments = np.tile(np.r_[[1] * 5, [2] * (WIDTH - 8), [0] * 3], (SITES, ROWS, 1)).astype(np.int32)
  segments[:, 1] = np.r_[[1] * (WIDTH - 1), 0]
  valid, at = jnp.arange(PREFIX) < PREFIX - 2, PREFIX - 2 + jnp.arange(WIDTH)

  def of_site(segments, towards, q, shared, own):
    mask = segments[:, :, None] == segments[:, None, :]
    mask, seen = mask & jnp.tril(jnp.ones((1, WIDTH, WIDTH), bool)), valid
    if window is not None:
      near = Window(at, jnp.int32(window))
      mask = mask & near.covers(at, at)[None]
      seen = jnp.tile(valid[None] & near.covers(at, jnp.arange(PREFIX)), (ROWS, 1, 1))
    out, pull = jax.vjp(lambda q, shared, own: how(
      q, (Source(*shared, seen), Source(*own, mask))), q, shared, own)
    return jax.tree.leaves((out, *pull(towards)))[parts]

  return jax.jit(jax.vmap(of_site))(segments, towards, q, shared, own)


def distance(ours, plain) -> float:
  return max(float(jnp.abs(x - y).max()) for x, y in zip(ours, plain, strict=True))


@pytest.fixture(scope='module')
def plain():
  return gradients(attend)


@pytest.mark.parametrize('query_bytes', [1, pytest.param(2 ** 20, marks=pytest.mark.slow)])
def test_averages_and_gradients_are_the_plain_ones(query_bytes, plain, monkeypatch):
  """Two tiles of queries and of keys of both sources; shared keys' gradients by row, or at once."""
  monkeypatch.setattr(flash, '_QUERY_BYTES', query_bytes)
  assert distance(gradients(flash.flash_attend(SMALL)), plain) < 2e-5


@pytest.mark.parametrize('parts', [
  slice(1), pytest.param(slice(None), marks=pytest.mark.slow)])
def test_a_window_hides_keys_of_both_sources(parts):
  ours, plain = (gradients(how, 9, parts) for how in (flash.flash_attend(WHOLE), attend))
  assert distance(ours, plain) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize('prefix', [0, 7])
def test_a_packed_pass_is_the_plain_one(prefix):
  """With the instruction's attention to itself, or without an instruction."""
  rng = np.random.default_rng(1)
  q = rng.normal(size=(prefix + 2 * WIDTH, 4, 8)).astype(np.float32)
  k, v = rng.normal(size=(2, prefix + 2 * WIDTH, 2, 8)).astype(np.float32)
  context = jnp.arange(prefix) < prefix - 1, jnp.tile(jnp.arange(WIDTH) // 9, (2, 1))
  ours, plain = (
    packed_attention(q, k, v, None, context, attend=how)[0]
    for how in (flash.flash_attend(WHOLE), attend))
  assert distance([ours], [plain]) < 2e-5


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
  ('_for_tiles', _own_maximum, slice(0, 1)), ('_key_gradient', _own_mean, slice(2, 3))])
def test_a_wrong_merge_is_noticed(part, wrong, changed, plain, monkeypatch):
  monkeypatch.setattr(flash, part, wrong)
  ours = gradients(flash.flash_attend(WHOLE), parts=changed)
  assert distance(ours, plain[changed]) > 1e-2


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
  with programs.asked_of([SimpleNamespace(device_kind='NVIDIA H100 80GB HBM3')], backend):
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

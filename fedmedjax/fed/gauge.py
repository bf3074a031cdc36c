"""Clipping and noise that see the product of a pair of LoRA factors, never the factors themselves.

Wang & Zhang, "PRISM: Gauge-Invariant Tangent-Space Differentially Private LoRA", ICML 2026,
arXiv:2606.00944. (A, B) and (A G, G^-1 B) are one adapter, yet the norms of their gradients differ
without bound, and so does the noise that a clip of the factors puts on the product. PRISM lifts
every contribution to the tangent space of the matrices of rank r at the product, clips it there by
its norm over all matrices, adds noise that is isotropic there, and takes the step back to rank r by
truncation. The paper writes Z = A B^T; our B is its B^T.

The tangent space at Z = A B is {Q_A X + Y Q_B^T with Q_A^T Y = 0}, where Q_A [D_in, r] and Q_B
[D_out, r] are orthonormal bases of A's columns and B's rows. X [r, D_out] and Y [D_in, r] are
orthonormal coordinates: |Q_A X + Y Q_B^T|^2 = |X|^2 + |Y|^2. Hence a clip of the coordinates is a
clip of the tangent, and Gaussian numbers on them (Y's without what lies in Q_A) are PRISM's noise.

What is ours: the projection of a site's whole change of the product, A_k B_k - A B, in place of a
gradient (`change_coordinates`), so that a round of many local steps has the same clip; that what a
step releases is handed on as factor gradients to the usual optimiser (`factor_gradient`), which
PRISM replaces by one of its own that is gauge-invariant too; and directions in which a factor has
no size, such as all of B before the first step, belong to no tangent and get no noise: the first
step moves B alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedmedjax.fed.factors import map_pairs, precise_einsum, truncated
from fedmedjax.fed.private_sums import normal
from fedmedjax.fed.types import Array, Tree

# Singular values below this share of the largest are those of directions without size.
_NO_SIZE = 1e-6


class Basis(NamedTuple):
  """An orthonormal basis of a factor's directions, whatever gauge the factor is written in."""

  q: Array      # [..., D, r], of zero columns where there is no direction
  inner: Array  # [..., r, r]: q = factor @ inner
  there: Array  # f32[..., r], 1 = the column is a direction, 0 = it is none


class Frame(NamedTuple):
  """The tangent space at a product: bases of A's columns and of B's rows, q [..., D, r]."""

  a: Basis
  b: Basis


def basis(factor: Array) -> Basis:
  """The basis of the columns of a factor [..., D, r]."""
  q, triangle = jnp.linalg.qr(factor)
  u, s, vt = jnp.linalg.svd(triangle, full_matrices=False)
  there = (s > _NO_SIZE * s[..., :1]).astype(factor.dtype)
  inverse = there / jnp.where(there > 0, s, 1.0)
  return Basis(
    precise_einsum('...di,...ir->...dr', q, u * there[..., None, :]),
    jnp.swapaxes(vt, -1, -2) * inverse[..., None, :], there)


def frames(adapter: Tree) -> Tree:
  """The `Frame` of every pair of the adapter, a [..., D_in, r] and b [..., r, D_out]."""
  return map_pairs(
    lambda pair: Frame(basis(pair['a']), basis(jnp.swapaxes(pair['b'], -1, -2))), adapter)


def gradient_coordinates(frame: Tree, gradient: Tree) -> Tree:
  """PRISM's tangent of a gradient, from those of the factors alone -> {'x', 'y'} a pair.

  With G the gradient of the product, g_A = G B^T and g_B = A^T G; X = Q_A^T G and G Q_B follow.

  Args:
    frame: of `frames`, at the adapter where the gradient was taken.
    gradient: a [..., D_in, r], b [..., r, D_out].

  Returns:
    x [..., r, D_out] and y [..., D_in, r] in place of a pair.
  """
  return map_pairs(
    lambda pair, own: _coordinates(
      own, precise_einsum('...ji,...jo->...io', own.a.inner, pair['b']),
      precise_einsum('...dj,...ji->...di', pair['a'], own.b.inner)), gradient, frame)


def change_coordinates(frame: Tree, anchor: Tree, update: Tree) -> Tree:
  """The tangent part of a whole change of the product, (A + dA)(B + dB) - A B. Ours.

  It depends on products alone: in whatever gauge a site writes its factors, it is the same.

  Args:
    frame: of `frames(anchor)`.
    anchor: a [..., D_in, r], b [..., r, D_out].
    update: dA, dB of the same shapes.

  Returns:
    x [..., r, D_out] and y [..., D_in, r] in place of a pair.
  """
  def pair(start, change, own):
    a, b, da, db = start['a'], start['b'], change['a'], change['b']
    after = b + db
    def across(left, right):  # Q_A^T (dA (B + dB) + A dB) and the same times Q_B, without [D, D]
      return precise_einsum('...ij,...jo->...io', left(da), right(after)) + precise_einsum(
        '...ij,...jo->...io', left(a), right(db))
    onto_a = lambda m: precise_einsum('...di,...dj->...ij', own.a.q, m)  # noqa: E731
    onto_b = lambda m: precise_einsum('...jo,...oi->...ji', m, own.b.q)  # noqa: E731
    return _coordinates(own, across(onto_a, lambda m: m), across(lambda m: m, onto_b))

  return map_pairs(pair, anchor, update, frame)


def _coordinates(frame: Frame, onto_a: Array, onto_b: Array) -> dict:
  """{'x': Q_A^T M, 'y': M Q_B without its part in Q_A} of these two products of a matrix M."""
  return {'x': onto_a, 'y': _outside(frame, onto_b)}


def _outside(frame: Frame, y: Array) -> Array:
  """Y [..., D_in, r] without what lies in A's columns and in directions that B has not."""
  q = frame.a.q
  inside = precise_einsum('...di,...dj->...ij', q, y)
  return (y - precise_einsum('...di,...ij->...dj', q, inside)) * frame.b.there[..., None, :]


def tangent_noise(frame: Tree, key: Array, like: Tree, deviation: Array | float) -> Tree:
  """Isotropic Gaussian noise in the tangent space: PRISM's P(Xi), as coordinates {'x', 'y'}.

  Args:
    frame: of `frames`.
    key: of this release.
    like: coordinates x [..., r, D_out], y [..., D_in, r].
    deviation: standard deviation in every direction of the tangent space.
  """
  return projected(frame, normal(key, like, deviation))


def projected(frame: Tree, coordinates: Tree) -> Tree:
  """Numbers x [..., r, D_out], y [..., D_in, r] without what no tangent has."""
  return _map_frames(
    lambda own, pair: {'x': pair['x'] * own.a.there[..., :, None], 'y': _outside(own, pair['y'])},
    frame, coordinates)


def factor_gradient(frame: Tree, adapter: Tree, coordinates: Tree) -> Tree:
  """Factor gradients of a tangent T = Q_A X + Y Q_B^T: g_A = T B^T, g_B = A^T T. Ours.

  Of the coordinates of a gradient, neither clipped nor noised, they are that gradient again.

  Args:
    frame: of `frames(adapter)`.
    adapter: a [..., D_in, r], b [..., r, D_out].
    coordinates: x [..., r, D_out], y [..., D_in, r].
  """
  def pair(own, point, factors):
    a, b, x, y = factors['a'], factors['b'], point['x'], point['y']
    along = precise_einsum('...io,...jo->...ij', x, b)
    rows = precise_einsum('...oi,...jo->...ij', own.b.q, b)
    columns = precise_einsum('...di,...dj->...ij', own.a.q, a)
    return {
      'a': precise_einsum('...di,...ij->...dj', own.a.q, along)
      + precise_einsum('...di,...ij->...dj', y, rows),
      'b': precise_einsum('...ij,...io->...jo', columns, x)}

  return _map_frames(pair, frame, coordinates, adapter)


def retracted(frame: Tree, adapter: Tree, coordinates: Tree) -> Tree:
  """The adapter whose product is the best of rank r for A B + Q_A X + Y Q_B^T: PRISM's retraction.

  A and B share the singular values: a gauge that the product alone fixes.

  Args:
    frame: of `frames(adapter)`.
    adapter: a [..., D_in, r], b [..., r, D_out].
    coordinates: x [..., r, D_out], y [..., D_in, r].
  """
  def pair(own, point, factors):
    rank = factors['a'].shape[-1]
    inside = precise_einsum('...di,...dj->...ij', own.a.q, factors['a'])
    rows = precise_einsum('...ij,...jo->...io', inside, factors['b']) + point['x']
    both = {
      'a': jnp.concatenate([own.a.q, point['y']], axis=-1),
      'b': jnp.concatenate([rows, jnp.swapaxes(own.b.q, -1, -2)], axis=-2)}
    return truncated(both, rank)

  return _map_frames(pair, frame, coordinates, adapter)


def _map_frames(fn, frame, *trees):
  """fn of every `Frame` of a tree and the nodes of the other trees that stand in its place."""
  return jax.tree.map(fn, frame, *trees, is_leaf=lambda node: isinstance(node, Frame))

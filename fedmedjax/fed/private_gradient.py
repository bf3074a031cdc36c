"""A step's gradient with example-, note- or patient-level differential privacy: DP-SGD's.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, arXiv:1607.00133, algorithm 1:
each unit's gradient g(x_i) is scaled down to the norm C, they are summed, N(0, sigma^2 C^2 I) is
added and the sum is divided by the lot's expected size L. Here C is `Private.clip`, sigma
`Private.noise` and L `Private.denominator`; what follows (AdamW, the control variates of a rule,
the average over sites) sees the result only.

We deviate in that a unit's gradient is that of the sum of its nats, not of their mean: a note has
several examples, and none of them weighs less because there are others. A unit whose gradient is
not finite counts as zero; otherwise it alone could turn everything into NaN, which tells that it is
there.

Noise is float32 of JAX's generator, a function of the step's key: whoever knows that can
take it off, and attacks on the last bits of floating-point noise (Mironov, CCS 2012) are not
defended against.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedmedjax import tree
from fedmedjax.fed import gauge
from fedmedjax.fed.privacy import Private
from fedmedjax.fed.private_sums import normal
from fedmedjax.fed.types import Array, GradientFn, LossFn, Tree


class Geometry(NamedTuple):
  """In which numbers a unit's gradient is measured, clipped and made noisy."""

  frame: Callable[[Tree], Any]             # (adapter [*p]) -> what the others are given
  coordinates: Callable[[Any, Tree], Tree]  # (frame, gradient [*p]) -> its coordinates, linear
  # (frame, key, like coordinates, standard deviation) -> noise on coordinates
  noise: Callable[[Any, Array, Tree, float], Tree]
  gradient: Callable[[Any, Tree, Tree], Tree]  # (frame, adapter, coordinates) -> gradient [*p]


# By `Private.clipping`.
GEOMETRIES: Mapping[str, Geometry] = {
  # The Euclidean norm of all entries, as in algorithm 1.
  'norm': Geometry(
    lambda adapter: (), lambda frame, gradient: gradient,
    lambda frame, key, like, deviation: normal(key, like, deviation),
    lambda frame, adapter, coordinates: coordinates),
  # That of the change of the products A B, whatever the split into factors (PRISM).
  'gauge': Geometry(
    gauge.frames, gauge.gradient_coordinates, gauge.tangent_noise, gauge.factor_gradient)}


def clip_by_norm(values: Tree, clip: float) -> Tree:
  """[*p] times min(1, clip / its Euclidean norm over all leaves)."""
  scale = jnp.minimum(1.0, clip / jnp.maximum(tree.norm(values), 1e-30))
  return jax.tree.map(lambda x: x * scale, values)


def private_gradient(
  loss_fn: LossFn, private: Private, *, keep: Callable[[Tree], Tree] = lambda values: values,
  together: int = 1, drawn: Callable[[Any], Array] | None = None,
) -> GradientFn:
  """The noisy sum of clipped gradients of a step's units, over a fixed denominator.

  A unit's loss is `loss_fn` of its own arrays alone, the shared instruction among them, so its
  gradient has the instruction's path in it. Under `jax.vmap` over sites every site has its own
  units, key and noise.

  Args:
    loss_fn: (adapter [*p], base, batch with leaves [U, ...]) -> (sum of nats f32[], sum of token
      weights f32[]) over any number U of units, of which one alone is [1, ...].
    private: clip, noise and denominator.
    keep: [*p] -> [*p], zeroes what is not trained, which must not count in a unit's norm.
    together: gradients that are in memory at a time; U is a multiple of it, or it is lowered until
      U is.
    drawn: (batch) -> bool[U]: which places hold a unit. Chunks behind the last are not computed.
      None = all are.

  Returns:
    (adapter [*p], base, batch, key) -> (loss f32[], gradient f32[*p]). The loss, nats per
    supervised token over the units of the step, is neither clipped nor noisy: it must not leave
    the site. Without a unit it is 0, and the gradient is noise.
  """
  geometry = GEOMETRIES[private.clipping]

  def gradient(adapter, base, batch, key):
    count = len(jax.tree.leaves(batch)[0])
    size = next(n for n in range(min(together, count), 0, -1) if count % n == 0)
    frame = geometry.frame(adapter)

    def of_unit(unit):
      terms, own = jax.value_and_grad(loss_fn, has_aux=True)(
        adapter, base, jax.tree.map(lambda x: x[None], unit))
      own = geometry.coordinates(
        frame, jax.tree.map(lambda x: x.astype(jnp.float32), keep(own)))
      found = terms, clip_by_norm(own, private.clip)
      usable = jnp.isfinite(tree.norm(own)) & jnp.isfinite(terms[0])
      return jax.tree.map(lambda x: jnp.where(usable, x, jnp.zeros_like(x)), found)

    def add(chunk, sums):
      units = jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, chunk * size, size), batch)
      return jax.tree.map(
        lambda x, terms: x + terms.sum(axis=0).astype(x.dtype), sums, jax.vmap(of_unit)(units))

    last = count if drawn is None else jnp.max(
      jnp.where(drawn(batch), jnp.arange(1, count + 1), 0))
    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype),
      jax.eval_shape(of_unit, jax.tree.map(lambda x: x[0], batch)))
    (nats, weight), total = jax.lax.fori_loop(0, -(-last // size), add, zeros)
    if private.noise:
      total = jax.tree.map(
        jnp.add, total, geometry.noise(frame, key, total, private.noise * private.clip))
    return nats / jnp.maximum(weight, 1.0), jax.tree.map(
      lambda x, p: (x / private.denominator).astype(p.dtype),
      geometry.gradient(frame, adapter, total), adapter)

  return gradient

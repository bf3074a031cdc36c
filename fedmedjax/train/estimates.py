"""Estimates of a round's memory by tracing: nothing is compiled."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax import tree
from fedmedjax.experiment.execution import Execution, sites_at_once
from fedmedjax.experiment.types import DeviceShare, Study
from fedmedjax.train import alive


class Held(NamedTuple):
  """Bytes that the gradient of a loss holds besides its own arguments."""

  kept: int  # that the forward pass hands to the backward pass
  made: int  # that live while the backward pass goes through one layer


def estimate(study: Study, inputs: tuple) -> Callable[[Execution], int]:
  """(execution) -> estimated bytes that a round needs in addition to those in use before it.

  Nothing is compiled. For each site that is computed at once these are its adapter, gradient and
  moments, what the traced loss keeps for its gradient, and what lives while that of one layer is
  made (`alive.backward`). To them come the adapter as the round began, the weights of a layer that
  are unpacked or cut out and, where not all sites are computed at once, what each of the round
  sends; otherwise that takes the place of what it was made of. A chip with memory of its own has
  the first adapter and what a layer makes there as far as they fit. How near all this is to what
  compilers need: docs/accelerators.md.

  Args:
    study: what is trained.
    inputs: arguments of the round, arrays or their shapes.
  """
  data, share = inputs[2], device_share(study, inputs)
  held = activations(study, inputs)
  sites, grouped = study.communication.sampler.size, study.schedule.layout.groups > 1
  # Units of privacy have gradients of their own, several at a time.
  copies, together = tree.num_bytes(share.adapter), study.schedule.layout.together
  moments = tree.num_bytes(jax.eval_shape(study.optimizer.transform.init, share.adapter))

  def needed(execution: Execution) -> int:
    # On a device.
    at_once, own = (-(-n // study.groups) for n in (sites_at_once(execution, sites), sites))
    kept, made = held(execution.remat)
    # Of several processes, each device has its own sites' examples only.
    packed = tree.num_bytes(data.batches) // (study.groups if study.spread else 1)
    # Activations of one group at a time, beside the sum of the gradients so far.
    return (
      packed + tree.num_bytes(study.validation)
      + share.copied[at_once > 1] + share.weights + share.workspace
      + share.sent * (own if at_once < own else 0)
      + at_once * ((1 + grouped + together) * copies + moments + together * kept)
      + max(0, share.sent + at_once * together * made - share.on_chip))

  return needed


def device_share(study: Study, inputs: tuple) -> DeviceShare:
  """What one device holds and computes: all of it where the model does not say."""
  own = study.trainable
  return own.share or DeviceShare(
    own.loss_fn, own.adapter, inputs[1], tree.num_bytes(own.adapter))


def activations(study: Study, inputs: tuple) -> Callable[[str], Held]:
  """(remat) -> what the gradient of one group of a site's step holds on a device."""
  share, batch = device_share(study, inputs), group_shapes(study, inputs)
  return cache(lambda remat: held_for_gradient(
    share.loss_fn(remat), share.adapter, share.base, batch))


def computed(study: Study, inputs: tuple) -> tuple[Callable, Any, Any, Any]:
  """What a device computes of a step: (remat) -> its loss, and the arguments of that loss."""
  share = device_share(study, inputs)
  return *(share.work or (share.loss_fn, share.adapter, share.base)), group_shapes(study, inputs)


def group_shapes(study: Study, inputs: tuple) -> Any:
  """The shapes of the examples that one site computes at once."""
  before = 2 + (study.schedule.layout.groups > 1)  # axes: sites, steps, and groups of a step
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[before:], x.dtype), inputs[2].batches)


def held_for_gradient(loss_fn, adapter: Any, base: Any, batch: Any) -> Held:
  """What the gradient of a loss holds, by a trace; arguments are arrays or their shapes."""

  def gradient(adapter, base, batch):
    total, pull = jax.vjp(lambda one: loss_fn(one, base, batch)[0], adapter)
    return jax.tree.leaves(pull), pull(jnp.ones_like(total))

  traced, (handed, _) = jax.make_jaxpr(gradient, return_shape=True)(adapter, base, batch)
  inner = traced.jaxpr
  given = {id(var) for var in (*inner.invars, *inner.constvars)}
  kept = {id(var): var.aval for var in inner.outvars[:len(handed)] if id(var) not in given}
  return Held(
    sum(int(np.prod(aval.shape)) * aval.dtype.itemsize for aval in kept.values()),
    alive.backward(inner))

"""Estimates of a round's memory by tracing: nothing is compiled."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np

from fedmedjax import tree
from fedmedjax.experiment.execution import Execution, sites_at_once
from fedmedjax.experiment.types import DeviceShare, Study


def estimate(study: Study, inputs: tuple) -> Callable[[Execution], int]:
  """(execution) -> estimated bytes that a round needs in addition to those in use before it.

  Nothing is compiled. For each site that is computed at once these are its adapter, gradient and
  moments, and what the traced loss keeps for its gradient; for each site of the round, what it
  sends. To them comes what lives while the gradient of one layer is made: what that layer makes
  again, or the weights that are cut out of the stacked base, whichever is more. How near that is to
  what compilers need: docs/accelerators.md.

  Args:
    study: what is trained.
    inputs: arguments of the round, arrays or their shapes.
  """
  data, share = inputs[2], device_share(study, inputs)
  kept = activations(study, inputs)
  sites, grouped = study.communication.sampler.size, study.schedule.layout.groups > 1
  copies = tree.num_bytes(share.adapter)
  moments = tree.num_bytes(jax.eval_shape(study.optimizer.transform.init, share.adapter))

  def needed(execution: Execution) -> int:
    at_once = -(-sites_at_once(execution, sites) // study.groups)  # on a device
    again = (kept('none') - kept(execution.remat)) // share.layers if share.layers else 0
    # Activations of one group at a time, beside the sum of the gradients so far.
    # Of several processes, each device has its own sites' examples only.
    packed = tree.num_bytes(data.batches) // (study.groups if study.spread else 1)
    return (
      packed + tree.num_bytes(study.validation) + -(-sites // study.groups) * share.sent
      + at_once * ((2 + grouped) * copies + moments + kept(execution.remat))
      + max(at_once * again, share.weights))

  return needed


def device_share(study: Study, inputs: tuple) -> DeviceShare:
  """What one device computes: all of it where the model does not say."""
  own = study.trainable
  return own.share or DeviceShare(
    own.loss_fn, own.adapter, inputs[1], tree.num_bytes(own.adapter))


def activations(study: Study, inputs: tuple) -> Callable[[str], int]:
  """(remat) -> bytes that the gradient of one group of a site's step keeps on a device."""
  loss_fn, *given = computed(study, inputs)
  return cache(lambda remat: kept_for_gradient(loss_fn(remat), *given))


def computed(study: Study, inputs: tuple) -> tuple[Callable, Any, Any, Any]:
  """What a device computes of a step: (remat) -> its loss, and the arguments of that loss."""
  return *device_share(study, inputs)[:3], group_shapes(study, inputs)


def group_shapes(study: Study, inputs: tuple) -> Any:
  """The shapes of the examples that one site computes at once."""
  before = 2 + (study.schedule.layout.groups > 1)  # axes: sites, steps, and groups of a step
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape[before:], x.dtype), inputs[2].batches)


def kept_for_gradient(loss_fn, adapter: Any, base: Any, batch: Any) -> int:
  """Bytes that the loss's forward pass hands to its backward pass, besides its own arguments."""

  def residuals(adapter, base, batch):
    return jax.tree.leaves(jax.vjp(lambda one: loss_fn(one, base, batch)[0], adapter)[1])

  traced = jax.make_jaxpr(residuals)(adapter, base, batch).jaxpr
  given = {id(var) for var in (*traced.invars, *traced.constvars)}
  kept = {id(var): var.aval for var in traced.outvars if id(var) not in given}
  return sum(int(np.prod(aval.shape)) * aval.dtype.itemsize for aval in kept.values())

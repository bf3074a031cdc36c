"""Estimates of a round's memory by tracing: nothing is compiled."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np

from fedmedjax import tree
from fedmedjax.experiment.execution import Execution, sites_at_once
from fedmedjax.experiment.types import Study


def estimate(study: Study, inputs: tuple) -> Callable[[Execution], int]:
  """(execution) -> estimated bytes that a round needs in addition to those in use before it.

  Nothing is compiled. The estimate counts too much, since the compiler drops a part of what the
  traced loss keeps for its gradient, and too little, since the compiler's temporary arrays are not
  in it.

  Args:
    study: what is trained.
    inputs: arguments of the round, arrays or their shapes.
  """
  data, adapter, kept = inputs[2], study.trainable.adapter, activations(study, inputs)
  sites, grouped = study.communication.sampler.size, study.schedule.layout.groups > 1

  def needed(execution: Execution) -> int:
    copies = tree.num_bytes(adapter)
    moments = tree.num_bytes(jax.eval_shape(study.optimizer.transform.init, adapter))
    at_once = -(-sites_at_once(execution, sites) // study.groups)  # on a device
    # Activations of one group at a time, beside the sum of the gradients so far.
    return (
      tree.num_bytes((data.batches, study.validation)) + sites * copies
      + at_once * ((2 + grouped) * copies + moments + kept(execution.remat)))

  return needed


def activations(study: Study, inputs: tuple) -> Callable[[str], int]:
  """(remat) -> bytes that the gradient of one group of a site's step keeps."""
  group = group_shapes(study, inputs)
  return cache(lambda remat: kept_for_gradient(
    study.trainable.loss_fn(remat), study.trainable.adapter, inputs[1], group))


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

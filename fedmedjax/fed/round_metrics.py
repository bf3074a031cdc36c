"""What a round reports of its aggregate, see `types.RoundMetrics`."""

import jax
import jax.numpy as jnp

from fedmedjax import tree
from fedmedjax.fed.aggregators.product_gap import product_gap
from fedmedjax.fed.factors import join
from fedmedjax.fed.sites import ByRows
from fedmedjax.fed.types import Aggregate

_AS_THEY_ARE: ByRows = lambda sent: sent  # noqa: E731


def metrics_of(
  anchor, adapter, local, sent, aggregate: Aggregate, given, step,
  by_rows: ByRows = _AS_THEY_ARE,
) -> dict:
  """What `RoundMetrics` has of the aggregate.

  Args:
    anchor, adapter: [*p], the server's before and after its step.
    local, sent: [C, *p], the sites' adapters and updates.
    aggregate: of the aggregator.
    given, step: [*p], what the server optimiser was handed and what it made of it.
    by_rows: see `product_gap`.
  """
  weights = aggregate.weights
  return {
    'validation_loss': aggregate.utility,
    'weights': weights,
    'update_norm': jax.vmap(tree.norm)(sent),
    'cosine': jax.vmap(tree.cosine, (0, None))(sent, tree.weighted_sum(sent, weights)),
    # Of the adapter itself: that it moved, not that a step was made.
    'step_norm': tree.norm(jax.tree.map(jnp.subtract, adapter, anchor)),
    'step_cosine': tree.cosine(step, given),
    'expected_gap': tree.norm(jax.tree.map(jnp.subtract, step, given)),
    'product_gap': product_gap(local, join(adapter, aggregate.fold), weights, by_rows),
  }

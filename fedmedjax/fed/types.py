"""The vocabulary of the federated core: pytrees, a loss function, and nothing else.

A feature is a builder that closes over its hyper-parameters and returns one of the NamedTuples
of pure functions below. An implementer names the keyword arguments it needs and ends with `**_`.
Axis letters are those of `fedmedjax.types`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
Tree = Any

# (adapter, base, batch) -> (sum of nats f32[], sum of weights f32[])
LossFn = Callable[[Tree, Tree, Tree], tuple[Array, Array]]
# (adapter, base, batch, key) -> (mean loss f32[], gradient [*p])
GradientFn = Callable[[Tree, Tree, Tree, Array], tuple[Array, Tree]]


class LocalData(NamedTuple):
  """What the cohort trains on in one round."""

  batches: Tree      # leaves [C, K, ...]
  step_mask: Array   # bool[C, K]: False = padding, no step is taken
  weight: Array      # f32[C]: n_k, the size a site reports


class Validation(NamedTuple):
  """The server's validation set V (METHOD section 3), in Q steps that belong to G groups."""

  batches: Tree      # leaves [Q, ...]
  group: Array       # f32[Q, G]: one-hot (site, task) group of each step


class LocalOptimizer(NamedTuple):
  """A fresh optimiser a round: `transform` gives a direction u, a step is -rate * u."""

  transform: Any     # optax.GradientTransformation without a learning rate
  rate: Callable     # (step i32[], num_steps i32[]) -> f32[]


class LocalRule(NamedTuple):
  """What a local step does to the gradient; `ctrl` are its control variates, if any."""

  init: Callable     # (adapter) -> (server_ctrl, site_ctrl)
  correct: Callable  # (grad, adapter, anchor, server_ctrl, site_ctrl) -> grad
  finish: Callable   # (anchor, adapter, num_steps, server_ctrl, site_ctrl)
                     #   -> (site_ctrl, ctrl_delta)


class Sharing(NamedTuple):
  """Which leaves are trained, and which of them travel; by path ('layers/q_proj/a')."""

  trained: Callable[[str], bool]
  shared: Callable[[str], bool]


class Aggregator(NamedTuple):
  """How updates become one.

  update(updates [C, *p], state, *, weights f32[C], cohort i32[C], anchor [*p], site_loss, key)
    -> (update [*p], state, weights used f32[C], validation loss f32[C]; NaN where not asked for)
  `site_loss()` -> f32[C] is evaluated only by the aggregators that call it.
  """

  init: Callable     # (adapter, num_sites) -> state
  update: Callable


class SiteState(NamedTuple):
  """What each site keeps between rounds; every leaf [S, ...]."""

  adapter: Tree      # private leaves; a shared leaf is a placeholder [S]
  ctrl: Tree
  outbound: Tree


class FedState(NamedTuple):
  """All that a checkpoint needs."""

  round: Array       # i32[]: rounds done
  adapter: Tree      # the server's, [*p]
  ctrl: Tree
  server_opt: Tree
  aggregator: Tree
  sites: SiteState


class RoundMetrics(NamedTuple):
  """What a round reports. Losses are nats per supervised token."""

  train_loss: Array        # f32[C, K], NaN at padded steps
  validation_loss: Array   # f32[C], NaN when the aggregator does not ask
  weights: Array           # f32[C], sum 1
  local_norm: Array        # f32[C], of what each site learnt, sent or not
  update_norm: Array       # f32[C], of what each site sent
  cosine: Array            # f32[C], of each update to the aggregate
  step_norm: Array         # f32[], of the server's step
  step_cosine: Array       # f32[], of the server's step to the aggregate
  expected_gap: Array      # f32[], |server step - aggregate|: 0 with plain averaging
  product_gap: Array       # f32[], |sum w A B - mean A mean B| / |sum w A B|, see products.py


class FederatedAlgorithm(NamedTuple):
  """init(adapter) -> FedState;
  round(state, base, data, cohort i32[C], val, key) -> (FedState, RoundMetrics), state donated."""

  init: Callable
  round: Callable

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
# (adapter, base, batch, key) -> (mean loss f32[], gradient [*p]); made from a LossFn, see
# `gradient.py`
GradientFn = Callable[[Tree, Tree, Tree, Array], tuple[Array, Tree]]


class LocalData(NamedTuple):
  """What the cohort trains on in one round."""

  batches: Tree      # leaves [C, K, ...]
  step_mask: Array   # bool[C, K]: False = padding, no step is taken
  weight: Array      # f32[C]: n_k, the size a site reports; 0 = padding or sends nothing


class Validation(NamedTuple):
  """The server's validation set V (METHOD section 3), in Q steps that belong to G groups."""

  batches: Tree      # leaves [Q, ...]
  group: Array       # f32[Q, G]: one-hot (site, task) group of each step


class LocalOptimizer(NamedTuple):
  """A fresh optimiser a round: `transform` gives a direction u, a step is -rate * u."""

  transform: Any     # optax.GradientTransformation without a learning rate
  rate: Callable     # (step i32[], num_steps i32[]) -> f32[]


class LocalRule(NamedTuple):
  """What a local step does to the gradient; `ctrl` are its control variates, if any.

  The server's ctrl moves by the sum over the cohort of `ctrl_delta`, over S, before `server`.
  """

  init: Callable     # (adapter) -> (server_ctrl, site_ctrl)
  correct: Callable  # (grad, adapter, anchor, server_ctrl, site_ctrl) -> grad
  finish: Callable   # (anchor, adapter, num_steps, server_ctrl, site_ctrl)
                     #   -> (site_ctrl, ctrl_delta)
  # (aggregate, server_ctrl) -> what the server optimiser is given
  server: Callable = lambda aggregate, server_ctrl: aggregate


class Sharing(NamedTuple):
  """Which leaves are trained in a round, and which travel; by path ('layers/q_proj/a').

  A leaf is sent in a round when it is both.
  """

  trained: Callable[[str, Any], Any]   # (path, rounds done) -> bool, traced or not
  shared: Callable[[str], bool]


class Ranks(NamedTuple):
  """How a site sees the server's adapter when sites have ranks of their own; see `ranks.py`."""

  mask: Callable       # (adapter, site) -> zeros where the site has no rank
  to_site: Callable    # (adapter, site): from the server's scale alpha / r to the site's
  to_server: Callable  # its inverse


class Aggregate(NamedTuple):
  """What an aggregator answers."""

  update: Tree         # [*p]
  state: Tree
  weights: Array       # f32[C], the weights used
  signal: Array        # f32[C], what the weights were made from besides n_k, or NaN
  fold: Tree = ()      # columns {a, b} that leave the adapter for good, see `products.py`


class Aggregator(NamedTuple):
  """How updates become one.

  update(updates [C, *p], state, *, weights f32[C] (n_k), cohort i32[C], anchor [*p],
         local [C, *p], validation_loss, validation_gradient, key) -> Aggregate
  A site of weight 0 took no part and counts nowhere. `local` are the sites' adapters, zero where
  a site has no rank. `validation_loss(adapters [Q, *p])` -> f32[Q] and `validation_gradient()` ->
  [*p], at the anchor, are evaluated only by the aggregators that call them.
  """

  init: Callable       # (adapter, num_sites) -> state
  update: Callable
  fold: Callable = lambda adapter: ()   # (adapter) -> room for the columns of all rounds


class Combine(NamedTuple):
  """How a weighted mean of adapters is formed, once the weights are chosen.

  apply(updates [C, *p], weights f32[C], *, anchor, local, key) -> (update [*p], fold)
  """

  apply: Callable
  fold: Callable = lambda adapter: ()


class SiteState(NamedTuple):
  """What each site keeps between rounds; every leaf [S, ...]."""

  adapter: Tree      # private leaves; a shared leaf is a placeholder [S]
  ctrl: Tree
  outbound: Tree


class FedState(NamedTuple):
  """All that a checkpoint needs."""

  round: Array       # i32[]: rounds done
  adapter: Tree      # the server's, [*p]
  folded: Tree       # columns that are part of the base by now, [.., T * columns]; or ()
  ctrl: Tree
  server_opt: Tree
  aggregator: Tree
  sites: SiteState


class RoundMetrics(NamedTuple):
  """What a round reports. Losses are nats per supervised token."""

  train_loss: Array        # f32[C, K], NaN at padded steps
  validation_loss: Array   # f32[C], the weights' signal, see `Aggregate`
  weights: Array           # f32[C], sum 1; all 0 = no site could be used, nothing changed
  sound: Array             # bool[C], False = in quarantine, or absent
  local_norm: Array        # f32[C], of what each site learnt, sent or not
  update_norm: Array       # f32[C], of what each site sent
  cosine: Array            # f32[C], of each update to their weighted mean
  step_norm: Array         # f32[], of the server's step
  step_cosine: Array       # f32[], of the server's step to the aggregate
  expected_gap: Array      # f32[], |server step - what the optimiser was given|: 0 with FedAvg
  product_gap: Array       # f32[], |sum w A B - A' B'| / |sum w A B|, see products.py


class FederatedAlgorithm(NamedTuple):
  """init(adapter) -> FedState;
  round(state, base, data, cohort i32[C], val, key) -> (FedState, RoundMetrics), state donated."""

  init: Callable
  round: Callable

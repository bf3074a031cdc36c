"""One federated round as one compiled program."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from fedmedjax import tree
from fedmedjax.fed.local import local_training, mean_loss
from fedmedjax.fed.products import product_gap
from fedmedjax.fed.types import (
  Aggregator,
  FederatedAlgorithm,
  FedState,
  GradientFn,
  LocalOptimizer,
  LocalRule,
  LossFn,
  RoundMetrics,
  Sharing,
  SiteState,
)


def federated_algorithm(
  *,
  loss_fn: LossFn,
  gradient_fn: GradientFn,
  optimizer: LocalOptimizer,
  rule: LocalRule,
  sharing: Sharing,
  outbound: optax.GradientTransformation,
  aggregator: Aggregator,
  server_optimizer: optax.GradientTransformation,
  map_sites: Callable,
  num_sites: int,
  on_step: Callable | None = None,
) -> FederatedAlgorithm:
  """Composes the parts into init and one jitted round.

  Order inside a round: gather the cohort's state; start = shared leaves of the server and own
  private leaves; local training over the sites; update = local - start on shared leaves;
  outbound per site; aggregate; server optimiser on -update; server side of the rule; scatter the
  site state. FedAvg (arXiv:1602.05629) is plain rule, everything shared, identity outbound, size
  weights and a server optimiser that adds the aggregate.

  Args:
    loss_fn: for the validation losses, if the aggregator asks for them.
    map_sites: from `fed/sites.py`.
    num_sites: S.
    on_step: see `local_training`.
    The other parts: values of `fed/types.py`; outbound and server_optimizer are optax's.
  """
  train = local_training(gradient_fn, optimizer, rule, sharing, on_step)

  private = partial(_private, sharing)
  one_site = _site_program(train, rule, sharing, outbound)

  def init(adapter):
    server_ctrl, site_ctrl = rule.init(adapter)
    site = SiteState(private(adapter), site_ctrl, outbound.init(adapter))
    copies = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x)[None], num_sites, axis=0), site)
    # Copies, because a round donates its state and the caller may keep `adapter`.
    return FedState(
      jnp.int32(0), jax.tree.map(jnp.array, adapter), server_ctrl,
      server_optimizer.init(adapter), aggregator.init(adapter, num_sites), copies)

  @partial(jax.jit, donate_argnums=0)
  def round_fn(state, base, data, cohort, val, key):
    own = jax.tree.map(lambda x: x[cohort], state.sites)
    sent, own, ctrl_delta, losses, local_norm = map_sites(partial(one_site, state, base, key))(
      cohort, own, data.batches, data.step_mask)

    def site_loss():
      def one(update):
        adapter = jax.tree.map(jnp.add, state.adapter, update)
        return mean_loss(loss_fn, adapter, base, val)
      return map_sites(one)(sent)

    aggregate, aggregator_state, weights, validation_loss = aggregator.update(
      sent, state.aggregator, weights=data.weight, cohort=cohort, anchor=state.adapter,
      site_loss=site_loss, key=jax.random.fold_in(key, num_sites))
    step, server_opt = server_optimizer.update(
      jax.tree.map(jnp.negative, aggregate), state.server_opt, state.adapter)
    adapter = optax.apply_updates(state.adapter, step)
    # ctrl_delta is the cohort's summed change over all S sites (SCAFFOLD, equation 5).
    ctrl = jax.tree.map(
      lambda c, delta: c + delta.sum(axis=0) / num_sites, state.ctrl, ctrl_delta)
    sites = jax.tree.map(lambda all_, new: all_.at[cohort].set(new), state.sites, own)
    metrics = _metrics(state.adapter, adapter, sent, aggregate, step, weights)
    metrics = RoundMetrics(
      train_loss=losses, validation_loss=validation_loss, local_norm=local_norm, **metrics)
    return FedState(
      state.round + 1, adapter, ctrl, server_opt, aggregator_state, sites), metrics

  return FederatedAlgorithm(init, round_fn)


def _private(sharing: Sharing, adapter):
  """The leaves a site keeps to itself; a scalar stands for a shared one.

  A scalar because checkpoints refuse arrays of size 0.
  """
  return tree.choose(
    sharing.shared, jax.tree.map(lambda x: jnp.zeros((), x.dtype), adapter), adapter)


def _site_program(train, rule: LocalRule, sharing: Sharing, outbound):
  """What one site does in a round, from its anchor to what it sends."""

  def one_site(state, base, key, site, site_state, batches, step_mask):
    anchor = tree.choose(sharing.shared, state.adapter, site_state.adapter)
    adapter, losses, num_steps = train(
      anchor, base, batches, step_mask, state.ctrl, site_state.ctrl, site,
      jax.random.fold_in(key, site))
    learnt = jax.tree.map(jnp.subtract, adapter, anchor)
    update = tree.select(learnt, sharing.shared)
    sent, outbound_state = outbound.update(update, site_state.outbound)
    ctrl, ctrl_delta = rule.finish(anchor, adapter, num_steps, state.ctrl, site_state.ctrl)
    kept = SiteState(_private(sharing, adapter), ctrl, outbound_state)
    return sent, kept, ctrl_delta, losses, tree.norm(learnt)

  return one_site


def _metrics(anchor, adapter, sent, aggregate, step, weights) -> dict:
  norms = jax.vmap(tree.norm)(sent)
  local = jax.tree.map(lambda p, u: p[None] + u, anchor, sent)
  return {
    'weights': weights,
    'update_norm': norms,
    'cosine': jax.vmap(tree.cosine, (0, None))(sent, aggregate),
    'step_norm': tree.norm(step),
    'step_cosine': tree.cosine(step, aggregate),
    'expected_gap': tree.norm(jax.tree.map(jnp.subtract, step, aggregate)),
    'product_gap': product_gap(local, adapter, weights),
  }


def site_adapter(state: FedState, sharing: Sharing, site: int):
  """The adapter with which site `site` answers: the server's shared and its own private leaves."""
  return tree.choose(
    sharing.shared, state.adapter, jax.tree.map(lambda x: x[site], state.sites.adapter))

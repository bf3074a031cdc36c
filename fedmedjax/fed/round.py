"""One federated round as one compiled program."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax

from fedmedjax import tree
from fedmedjax.fed.aggregation import aggregation_program
from fedmedjax.fed.aggregators.conventions import completed, names_argument
from fedmedjax.fed.aggregators.weighted_mean import adaptive_mean
from fedmedjax.fed.anchors import Anchors, newest
from fedmedjax.fed.clusters import adapter_of, has_clusters, members_weight
from fedmedjax.fed.contribution import ContributionMaker, no_contribution
from fedmedjax.fed.dual import GLOBAL, is_dual, side_by_side
from fedmedjax.fed.factors import join, write_columns
from fedmedjax.fed.gradient import mean_gradient
from fedmedjax.fed.initial import init_program, private_leaves
from fedmedjax.fed.local import OnStep, ShapeBucket, local_training, sgd
from fedmedjax.fed.private_losses import LossQuery
from fedmedjax.fed.quarantine import sound_sites
from fedmedjax.fed.ranks import same_ranks
from fedmedjax.fed.round_metrics import metrics_of
from fedmedjax.fed.rules import plain
from fedmedjax.fed.sharing import everything, moves, sends, shown
from fedmedjax.fed.sites import ByRows, SiteMap, SiteProgram, map_sites
from fedmedjax.fed.slots import into_slots, out_of_slots
from fedmedjax.fed.types import (
  Aggregate,
  Aggregator,
  FederatedAlgorithm,
  FedState,
  GradientFn,
  LocalOptimizer,
  LocalRule,
  LossFn,
  Ranks,
  RoundFn,
  RoundMetrics,
  Sharing,
  SiteState,
  Tree,
)

# What makes FedAvg (McMahan et al., arXiv:1602.05629) of the parts that a caller leaves out.
_SGD = sgd(0.1)
_PLAIN = plain()
_EVERYTHING = everything()
_ONE_RANK = same_ranks()
_AS_IT_IS = optax.identity()
_SIZE_MEAN = adaptive_mean()
_ADD = optax.sgd(1.0)
_AS_THEY_ARE: ByRows = lambda sent: sent  # noqa: E731
_ALL_AT_ONCE = map_sites(0)
_NEWEST = newest()


def federated_algorithm(
  loss_fn: LossFn, num_sites: int, *,
  gradient: Callable[..., GradientFn] = mean_gradient,
  optimizer: LocalOptimizer = _SGD, rule: LocalRule = _PLAIN,
  sharing: Sharing = _EVERYTHING, ranks: Ranks = _ONE_RANK,
  compression: optax.GradientTransformation = _AS_IT_IS,
  aggregator: Aggregator = _SIZE_MEAN,
  anchors: Anchors = _NEWEST,
  server_optimizer: optax.GradientTransformation = _ADD,
  map_sites: SiteMap = _ALL_AT_ONCE,
  explosion: float = 0.0, quarantine: bool = True, loss_query: LossQuery | None = None,
  place: Callable[[FedState], FedState] = lambda state: state,
  told: Callable[[RoundMetrics], RoundMetrics] = lambda metrics: metrics,
  by_rows: ByRows = _AS_THEY_ARE, on_step: OnStep | None = None,
  shape_buckets: Sequence[ShapeBucket] = (), contribution: ContributionMaker = no_contribution,
) -> FederatedAlgorithm:
  """Composes the parts into init and one jitted round; left to themselves they are FedAvg.

  Order inside a round: gather the cohort's state; start = shared leaves of the server and own
  private leaves, as far as the site's rank goes; local training over the sites; update = local -
  start on shared leaves, in the server's scale; compression per site; aggregate; server side of the
  rule; server optimiser on the negative; scatter the site state. A site of weight 0 (padding, or
  one that sends nothing) counts nowhere and keeps its state; so does one that is not sound (see
  `quarantine.py`). When no site has weight, nothing changes, nor does the count of rounds. FedAvg
  (arXiv:1602.05629) is plain rule, everything shared, no compression, size weights and a server
  optimiser that adds the aggregate.

  Args:
    loss_fn: (adapter [*p], base, batch) -> (sum of nats f32[], sum of weights f32[]).
    num_sites: S, of which each round's cohort is a part.
    gradient: makes that of loss_fn as a site sees it: at its own scale, with what was folded; if
      it names `keep`, see `local_training`.
    optimizer: of the local steps; plain steps of rate 0.1 by default.
    rule, sharing, ranks, aggregator, anchors: values of `fed/types.py` and `fed/anchors.py`.
    compression: of a site's update [*p]; may take `key`, which differs by round and site.
    server_optimizer: is given the negative aggregate [*p].
    on_step, shape_buckets: see `local_training`.
    map_sites, place, by_rows: lay sites, state and what is sent on devices, see `fed/sites.py`.
    told: where the metrics, f32[C] and the like, are kept.
    explosion: see `sound_sites`; sites that share nothing are no measure of each other.
    quarantine: False = a site that is not sound counts, as zeros. loss_query: of private losses.
    contribution: makes what is asked about each site's worth; takes no part in the training.
  """
  training = partial(
    local_training, optimizer=optimizer, on_step=on_step, shape_buckets=shape_buckets)
  one_site = site_program(
    loss_fn, gradient, training, rule, sharing, ranks, compression, begins=anchors.start)
  server_step = server_program(rule, sharing, server_optimizer)
  aggregated = aggregation_program(
    loss_fn, aggregator, sharing, ranks, map_sites, num_sites, loss_query)
  contributed = contribution(loss_fn, num_sites, map_sites.every)
  of_one = init_program(
    rule, sharing, compression, completed(aggregator), server_optimizer, num_sites)

  def init(adapter):
    return place(anchors.init(of_one(adapter), num_sites))

  return FederatedAlgorithm(jax.jit(init), _round_program(
    one_site, aggregated, contributed, server_step, anchors, num_sites=num_sites, sharing=sharing,
    ranks=ranks, map_sites=map_sites, explosion=explosion, quarantine=quarantine, place=place,
    told=told, by_rows=by_rows))


def _round_program(
  one_site, aggregated, contributed, server_step, anchors: Anchors, *, num_sites: int,
  sharing: Sharing, ranks: Ranks, map_sites: SiteMap, explosion: float, quarantine: bool,
  place, told, by_rows: ByRows,
) -> RoundFn:
  """The compiled round of the programs of its halves; see `federated_algorithm`."""

  @partial(jax.jit, donate_argnames='state')
  def round_fn(state, base, data, cohort, val, key):
    state = anchors.begin(state, data.delay, cohort)
    before = jax.tree.map(lambda x: x[cohort], state.sites)
    sent, after, ctrl_delta, losses, local_norm, _ = _trained(
      map_sites, one_site(state, base, key), data, cohort, before, by_rows)
    sound = sound_sites(
      local_norm, jax.vmap(tree.norm)(sent), losses, data.step_mask, data.weight > 0,
      explosion=explosion if sends(sharing, state.adapter) else 0.0)
    sent = anchors.arrived(
      tree.where(sound, sent, jax.tree.map(jnp.zeros_like, sent)), data.delay)
    worth = contributed(state, base, sent, jnp.where(sound, data.weight, 0), val, key)
    # Over all S sites, whatever the cohort (SCAFFOLD, equation 5).
    ctrl_delta, counted = tree.weighted_sum(ctrl_delta, sound / num_sites), sound | (not quarantine)

    def half(state, members):
      local = jax.tree.map(jnp.add, jax.vmap(partial(ranks.mask, state.adapter))(cohort), sent)
      aggregate = aggregated(
        state, base, data, cohort, before, sent, local, counted & members, val, key)
      new, given, step = server_step(
        state, aggregate, ctrl_delta, (aggregate.weights > 0).any())
      return new, metrics_of(
        state.adapter, new.adapter, local, sent, aggregate, given, step, by_rows)

    new, metrics = anchors.server(
      half, state, sent, jnp.where(counted, data.weight, 0), cohort)
    useful = (metrics['weights'] > 0).any()
    sites = _scatter(state.sites, tree.where(sound & useful, after, before), cohort)
    return place(new._replace(sites=sites)), told(RoundMetrics(
      losses, sound=sound, local_norm=local_norm, contribution=worth, **metrics))

  return round_fn


def _trained(
  map_sites: SiteMap, program: SiteProgram, data, cohort, before, by_rows: ByRows
):
  """What the cohort's sites [C] end with, wherever they are computed."""
  laid, steps = partial(into_slots, data.slots), data.step_mask
  if data.slots is not None:
    steps = laid(steps) & data.slots.filled[:, None]
  return out_of_slots(data.slots, map_sites.staged(program, last_steps(steps))(
    laid(cohort), laid(before), data.batches, steps), by_rows)


def last_steps(step_mask):
  """bool[C, K] -> i32[C], the number of the last step taken: K is that of the longest round."""
  _, steps = step_mask.shape
  numbers = jnp.arange(1, steps + 1, dtype=jnp.int32)
  return jnp.max(step_mask * numbers[None], axis=1)


def _scatter(sites, cohort_sites, cohort):
  """[S, *p] with the rows of `cohort` i32[C] replaced by [C, *p]."""
  return jax.tree.map(lambda all_, new: all_.at[cohort].set(new), sites, cohort_sites)


def site_program(
  loss_fn, gradient, local, rule: LocalRule, sharing: Sharing, ranks: Ranks, compression,
  encode=lambda update, outbound, key: (), begins=_NEWEST.start,
):
  """What one site does in a round, from its anchor to what it sends.

  (state, base, key) -> SiteProgram of (site, its state, its batches, its step_mask), whose results
  are (sent [*p], site state, ctrl_delta [*p], losses f32[K], norm f32[], message). The message is
  what `encode` makes of the update [*p], the state of `compression` and its key: the arrays that
  travel where the server is elsewhere. `begins`: see `Anchors.start`.
  """
  compression = optax.with_extra_args_support(compression)

  def one_site(state, base, key):
    def start_of(site, site_state):
      return ranks.mask(
        tree.choose(sharing.shared, begins(state, site), site_state.adapter), site)

    def training(site):
      def loss(adapter, base, batch):
        seen = shown(sharing, ranks.to_server(adapter, site), state.round)
        return loss_fn(join(seen, state.folded), base, batch)

      def keep(values):
        return ranks.mask(
          tree.select(values, lambda path: sharing.trained(path, state.round)), site)

      made = gradient(loss, keep=keep) if names_argument(gradient, 'keep') else gradient(loss)
      return local(made, rule=rule, shared=sharing.shared, keep=keep)

    def keys(site):
      return jax.random.split(jax.random.fold_in(key, site))

    def init(site, site_state, batches, step_mask):
      anchor = ranks.to_site(start_of(site, site_state), site)
      return training(site).start(anchor, step_mask)

    def steps(first, until, progress, site, site_state, batches, step_mask):
      anchor = ranks.to_site(start_of(site, site_state), site)
      training_key, _ = keys(site)
      return training(site).advance(
        first, until, progress, anchor, base, batches, step_mask, state.ctrl, site_state.ctrl,
        site, training_key)

    def final(progress, site, site_state, batches, step_mask):
      start = start_of(site, site_state)
      anchor, adapter = ranks.to_site(start, site), progress.adapter
      learnt = ranks.to_server(jax.tree.map(jnp.subtract, adapter, anchor), site)
      _, sending_key = keys(site)
      update = tree.select(learnt, sharing.shared)
      sent, outbound_state = compression.update(update, site_state.outbound, key=sending_key)
      # A codec need not keep zeros (one bit a value has none), and a site has no say about the
      # columns that it lacks.
      sent = ranks.mask(sent, site)
      ctrl, ctrl_delta = rule.finish(
        anchor, adapter, progress.taken, state.ctrl, site_state.ctrl)
      own = private_leaves(sharing, jax.tree.map(jnp.add, start, learnt))
      state_ = SiteState(own, ctrl, outbound_state)
      message = encode(update, site_state.outbound, sending_key)
      return sent, state_, ctrl_delta, progress.losses, tree.norm(learnt), message

    return SiteProgram(init, steps, final)

  return one_site


def server_program(rule: LocalRule, sharing: Sharing, server_optimizer):
  """From the aggregate [*p] to the next state, but for the sites' own; as it was unless `useful`.

  (state, aggregate, ctrl_delta [*p], useful bool[]) -> (state, what the optimiser was given [*p],
  its step [*p]).
  """

  def server_step(state: FedState, aggregate: Aggregate, ctrl_delta, useful):
    ctrl = jax.tree.map(jnp.add, state.ctrl, ctrl_delta)
    given = rule.server(aggregate.update, ctrl)
    step, server_opt = server_optimizer.update(
      jax.tree.map(jnp.negative, given), state.server_opt, state.adapter)
    # An optimiser's memory must not move what is frozen in this round.
    step = tree.select(step, lambda path: moves(sharing, path, state.round))
    new = state._replace(
      round=state.round + 1, adapter=optax.apply_updates(state.adapter, step), ctrl=ctrl,
      folded=write_columns(state.folded, aggregate.fold, state.round), server_opt=server_opt,
      aggregator=aggregate.state)
    return jax.tree.map(lambda a, b: jnp.where(useful, a, b), new, state), given, step

  return server_step


def site_adapter(state: FedState, sharing: Sharing, site: int):
  """The adapter [*p] with which site `site` answers: the server's shared leaves, those of its
  cluster where there are several, and its own private ones, joined with what is folded into the
  base."""
  own = jax.tree.map(lambda x: x[site], state.sites.adapter)
  shared = adapter_of(state, site) if has_clusters(state) else state.adapter
  return own_adapter(sharing, shared, own, state.folded)


def own_adapter(sharing: Sharing, shared: Tree, own: Tree, folded: Tree):
  """A site's adapter of the server's `shared` leaves and its `own`, both [*p], and what is folded
  into the base."""
  return join(side_by_side(tree.choose(sharing.shared, shared, own)), folded)


def global_adapter(state: FedState, sharing: Sharing, weights):
  """One adapter for all: private leaves are averaged once, by `weights` f32[S] of sum 1, and so are
  clusters' adapters, by the weights of their members; of two adapters it is the global one."""
  mean, shared = tree.weighted_sum(state.sites.adapter, weights), state.adapter
  if has_clusters(state):
    shared = tree.weighted_sum(shared, members_weight(state, weights))
  if is_dual(shared):
    return shared[GLOBAL]
  return join(tree.choose(sharing.shared, shared, mean), state.folded)

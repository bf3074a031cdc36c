"""A federated round in two halves that run apart: a site's training, and the server's part.

Both are made of the functions of `round.py`, so that a study between hospitals computes what the
simulated one does. What differs is where the validation notes are: here at the sites, which are
asked for their losses when the aggregator calls for them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedmedjax import tree
from fedmedjax.fed.aggregation import start_program
from fedmedjax.fed.aggregators.conventions import completed, names_argument
from fedmedjax.fed.factors import join
from fedmedjax.fed.gradient import mean_gradient
from fedmedjax.fed.initial import init_program
from fedmedjax.fed.local import (
  ShapeBucket,
  answer_losses,
  answer_slopes,
  local_training,
  token_losses,
)
from fedmedjax.fed.quarantine import sound_sites
from fedmedjax.fed.round import (
  last_steps,
  server_program,
  site_program,
)
from fedmedjax.fed.round_metrics import metrics_of
from fedmedjax.fed.sharing import sends
from fedmedjax.fed.sites import map_sites
from fedmedjax.fed.types import (
  Aggregate,
  Aggregator,
  Array,
  FedState,
  LocalOptimizer,
  LocalRule,
  LossFn,
  Ranks,
  RoundMetrics,
  Sharing,
  SiteState,
  Tree,
)


class Parts(NamedTuple):
  """The parts of a method that both halves are made of, see `round.federated_algorithm`."""

  optimizer: LocalOptimizer
  rule: LocalRule
  sharing: Sharing
  ranks: Ranks
  compression: optax.GradientTransformation
  aggregator: Aggregator
  server_optimizer: optax.GradientTransformation
  explosion: float
  num_sites: int


class Learnt(NamedTuple):
  """What a site has to say after its local steps."""

  message: list        # of every leaf, the codec's arrays; see `wire.encoder`
  control: Tree        # ctrl_delta [*p], or ()
  losses: Array        # f32[K], NaN at padded steps
  local_norm: Array    # f32[], of what it learnt
  sent_norm: Array     # f32[], of what it sends
  start_loss: Array | None  # f32[], where the aggregator names it


def site_half(
  loss_fn: LossFn, parts: Parts, encode: Callable, shape_buckets: Sequence[ShapeBucket] = ()
) -> Callable[..., tuple[Learnt, SiteState]]:
  """A site's half of the round, compiled.

  Args:
    loss_fn, parts, shape_buckets: see `round.federated_algorithm`.
    encode: of `wire.encoder`.

  Returns:
    (state, base, site state [1, *p], batches [1, K, ...], step_mask bool[1, K], site i32[], key)
    -> (Learnt, site state [1, *p]). Of the state only what the server sends is looked at: round,
    adapter, folded and ctrl.
  """
  training = partial(local_training, optimizer=parts.optimizer, shape_buckets=shape_buckets)
  one_site = site_program(
    loss_fn, mean_gradient, training, parts.rule, parts.sharing, parts.ranks, parts.compression,
    encode)
  starts = start_program(loss_fn, parts.sharing, parts.ranks)
  named, alone = names_argument(parts.aggregator.update, 'start_loss'), map_sites(1)

  @jax.jit
  def half(state, base, before, batches, step_mask, site, key):
    given = (site[None], before, batches, step_mask)
    sent, after, control, losses, norm, message = alone.staged(
      one_site(state, base, key), last_steps(step_mask))(*given)
    start = alone.every(starts(state, base))(*given) if named else None
    first = jax.tree.map(lambda x: x[0], (message, control, losses, norm, start))
    return Learnt(*first[:4], tree.norm(sent), first[4]), after

  return half


def judge(loss_fn: LossFn, per_answer: bool) -> Callable[..., Array]:
  """(adapter [*p], folded, base, validation of G groups) -> f32[G], nats per answer or token."""
  losses = answer_losses if per_answer else token_losses
  return jax.jit(lambda adapter, folded, base, validation: losses(
    loss_fn, join(adapter, folded), base, validation))


def fresh_site(parts: Parts, adapter: Tree) -> SiteState:
  """What a site keeps before its first round, every leaf [1, *p]."""
  one = parts._replace(num_sites=1)
  return jax.jit(lambda adapter: _init(one)(adapter).sites)(adapter)


def fresh_server(parts: Parts, adapter: Tree) -> FedState:
  """The state before the first round, without the sites' own: adapter [*p] and the like."""
  return jax.jit(lambda adapter: _init(parts)(adapter)._replace(sites=()))(adapter)


def _init(parts: Parts):
  return init_program(
    parts.rule, parts.sharing, parts.compression, completed(parts.aggregator),
    parts.server_optimizer, parts.num_sites)


class Answers(NamedTuple):
  """What the cohort's sites have sent, as trees over [C, ...]; zeros for who sent nothing."""

  sent: Tree            # updates [C, *p]
  control: Tree         # ctrl_delta [C, *p]; () = none travels
  losses: Array         # f32[C, K]
  step_mask: Array      # bool[C, K]
  weights: Array        # f32[C], n_k; 0 = sent nothing
  local_norm: Array     # f32[C]
  start_loss: Array     # f32[C]


class Queries(NamedTuple):
  """How an aggregator asks for losses on the sites' validation notes, see `AggregatorUpdate`."""

  validation_loss: Callable[[Tree], Array]      # adapters [Q, *p] -> f32[Q]
  answer_loss: Callable[[Tree], Array]          # adapters [Q, *p] -> f32[Q, G]
  answer_slopes: Callable[[Tree, Tree], Array]  # updates [C, *p], step [*p] -> f32[C, G]
  group_site: Callable[[], Array | None]        # () -> i32[G]


class _Asks(Exception):
  """The aggregator asks the sites, so it cannot be compiled."""


def _asks(*_):
  raise _Asks


_COMPILED = Queries(_asks, _asks, _asks, lambda: None)


def server_half(
  parts: Parts
) -> Callable[..., tuple[FedState, RoundMetrics]]:
  """The server's half of the round.

  Returns:
    (state, Answers [C, ...], cohort i32[C], Queries, key) -> (state, RoundMetrics). An aggregator
    that asks the sites is run step by step, since it waits for them; another one is compiled.
  """
  aggregator, sharing, ranks = completed(parts.aggregator), parts.sharing, parts.ranks
  named = names_argument(parts.aggregator.update, 'start_loss')
  server_step = server_program(parts.rule, sharing, parts.server_optimizer)

  @jax.jit
  def sorted_out(state, answers, cohort):
    """Who is sound, and the updates and adapters [C, *p] of these."""
    bound = parts.explosion if sends(sharing, state.adapter) else 0.0
    # A site has no say about the columns that it lacks.
    sent = jax.vmap(ranks.mask)(answers.sent, cohort)
    # The norm of what has come, not the one that a site says: a false one would send others away.
    came = jax.vmap(tree.norm)(sent)
    sound = sound_sites(
      came, came, answers.losses, answers.step_mask, answers.weights > 0, explosion=bound)
    sound &= jnp.isfinite(answers.local_norm)
    for leaf in jax.tree.leaves(answers.control):
      sound &= jnp.isfinite(leaf).all(axis=tuple(range(1, leaf.ndim)))
    sent = tree.where(sound, sent, jax.tree.map(jnp.zeros_like, sent))
    local = jax.tree.map(
      jnp.add, jax.vmap(partial(ranks.mask, state.adapter))(cohort), sent)
    return sound, sent, local

  def aggregated(queries, state, answers, cohort, sound, sent, local, key):
    more = {'start_loss': answers.start_loss} if named else {}
    return aggregator.update(
      sent, state.aggregator, cohort=cohort,
      weights=jnp.where(sound, answers.weights, 0), anchor=state.adapter, local=local,
      num_steps=answers.step_mask.sum(axis=1).astype(jnp.float32),
      validation_loss=queries.validation_loss, validation_gradient=_no_gradient,
      answer_loss=queries.answer_loss, answer_slopes=queries.answer_slopes,
      group_site=queries.group_site(), key=jax.random.fold_in(key, parts.num_sites), **more)

  @jax.jit
  def finished(state, answers, sound, sent, local, aggregate):
    useful = (aggregate.weights > 0).any()
    control = answers.control
    if not parts.rule.control_travels:
      # The server makes it of the updates; a site that sent nothing has moved by nothing.
      _, control = jax.vmap(partial(_moved_control, parts.rule, state))(
        sent, answers.step_mask.sum(axis=1))
    control = tree.weighted_sum(control, sound / parts.num_sites)
    new, given, step = server_step(state, aggregate, control, useful)
    metrics = metrics_of(state.adapter, new.adapter, local, sent, aggregate, given, step)
    return new, RoundMetrics(
      answers.losses, sound=sound, local_norm=answers.local_norm, **metrics)

  compiled = jax.jit(partial(aggregated, _COMPILED))

  def half(state, answers, cohort, queries, key):
    cohort = jnp.asarray(cohort)
    sound, sent, local = sorted_out(state, answers, cohort)
    given = state, answers, cohort, sound, sent, local, key
    aggregate: Aggregate
    try:
      aggregate = compiled(*given)
    except _Asks:
      aggregate = aggregated(queries, *given)
    return finished(state, answers, sound, sent, local, aggregate)

  return half


def _moved_control(rule: LocalRule, state: FedState, sent: Tree, steps: Array):
  """(own control variate, ctrl_delta [*p]) of a site, by what it sent."""
  local = jax.tree.map(jnp.add, state.adapter, sent)
  zeros = jax.tree.map(jnp.zeros_like, state.ctrl)
  return rule.finish(state.adapter, local, steps, state.ctrl, zeros)


def _no_gradient():
  raise RuntimeError(
    'config.fed.aggregator asks for the gradient of the validation loss, which leaves no site')


def slopes(loss_fn: LossFn) -> Callable[..., Array]:
  """(place [*p], updates [C, *p], folded, base, validation) -> f32[C, G], see `answer_slopes`."""
  return jax.jit(lambda place, updates, folded, base, validation: answer_slopes(
    lambda adapter, base, batch: loss_fn(join(adapter, folded), base, batch),
    place, updates, base, validation))


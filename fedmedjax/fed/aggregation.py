"""What an aggregator is given in a round, computed only as far as it asks."""

from collections.abc import Callable
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp

from fedmedjax import tree
from fedmedjax.fed.aggregators.conventions import completed, names_argument
from fedmedjax.fed.factors import join
from fedmedjax.fed.local import answer_losses, answer_slopes, mean_loss
from fedmedjax.fed.private_losses import LossQuery, losses_program
from fedmedjax.fed.sharing import shown
from fedmedjax.fed.sites import SiteMap
from fedmedjax.fed.slots import into_slots, out_of_slots
from fedmedjax.fed.types import Aggregate, Aggregator, LossFn, Ranks, Sharing


def aggregation_program(
  loss_fn: LossFn, aggregator: Aggregator, sharing: Sharing, ranks: Ranks, map_sites: SiteMap,
  num_sites: int, loss_query: LossQuery | None = None,
) -> Callable[..., Aggregate]:
  """What the server makes of the cohort's updates [C, *p], as one function for the round.

  It calls the aggregator with all that `AggregatorUpdate` lists, each part as lazily as it says.

  Args:
    loss_fn, aggregator, sharing, ranks, map_sites: see `round.federated_algorithm`.
    num_sites: S.
    loss_query: how losses of answers on V are cut and noised; None = as they are.

  Returns:
    (state, base, data, cohort i32[C], site state before the round [C, *p], sent [C, *p], local
    [C, *p], sound bool[C], val or None, key) -> Aggregate.
  """
  starts = start_program(loss_fn, sharing, ranks)
  named = names_argument(aggregator.update, 'start_loss')
  aggregator = completed(aggregator)

  def aggregated(state, base, data, cohort, before, sent, local, sound, val, key) -> Aggregate:
    def validation_loss(adapter):
      return mean_loss(loss_fn, join(adapter, state.folded), base, val)

    def answer_loss(adapter):
      return answer_losses(loss_fn, join(adapter, state.folded), base, val)

    def answer_slopes_of(updates, step):
      return answer_slopes(
        lambda adapter, base, batch: loss_fn(join(adapter, state.folded), base, batch),
        jax.tree.map(jnp.add, state.adapter, step), updates, base, val)

    answers = map_sites.every(answer_loss) if loss_query is None else losses_program(
      loss_query, lambda adapter, *rest: loss_fn(join(adapter, state.folded), *rest), base, val,
      map_sites.every, jax.random.fold_in(key, num_sites + 1))
    # A pass over all examples of the round, for those who name its result only.
    laid, over = partial(into_slots, data.slots), map_sites.every_slot or map_sites.every
    more = {'start_loss': out_of_slots(data.slots, over(starts(state, base))(
      laid(cohort), laid(before), data.batches, laid(data.step_mask)))} if named else {}
    answer = cast(Aggregate, aggregator.update(  # it is `completed`
      sent, state.aggregator, cohort=cohort,
      weights=tree.where(sound, data.weight, jnp.zeros_like(data.weight)),
      anchor=state.adapter, local=local,
      num_steps=data.step_mask.sum(axis=1).astype(jnp.float32),
      validation_loss=map_sites.every(validation_loss),
      validation_gradient=lambda: jax.grad(validation_loss)(state.adapter),
      answer_loss=answers,
      answer_slopes=answer_slopes_of,
      group_site=None if val is None else val.group_site,
      key=jax.random.fold_in(key, num_sites), **more))
    if 'noise' not in aggregator.gives:
      return answer
    # Noise falls on every leaf; of these only those that are sent have anything to hide.
    return answer._replace(update=tree.select(
      answer.update, lambda path: sharing.trained(path, state.round) & sharing.shared(path)))

  return aggregated


def start_program(loss_fn: LossFn, sharing: Sharing, ranks: Ranks):
  """The mean loss of a site's examples of the round at its anchor, in nats per supervised token.

  (state, base) -> (site i32[], its state, batches [K, ...], step_mask bool[K]) -> f32[].
  """

  def starts(state, base):
    def mean_start(site, site_state, batches, step_mask):
      own = tree.choose(sharing.shared, state.adapter, site_state.adapter)
      adapter = join(ranks.mask(shown(sharing, own, state.round), site), state.folded)

      def body(sums, inputs):
        batch, active = inputs
        terms = jnp.stack(loss_fn(adapter, base, batch)).astype(jnp.float32)
        return sums + jnp.where(active, terms, 0), None

      (nats, tokens), _ = jax.lax.scan(body, jnp.zeros(2), (batches, step_mask))
      return nats / jnp.maximum(tokens, 1e-30)

    return mean_start

  return starts

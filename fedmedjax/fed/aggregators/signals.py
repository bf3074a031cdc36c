"""What stands for the validation loss l_k in the weights of a mean, see `weighted_mean.py`.

"A Federated and Parameter-Efficient Framework for Large Language Model Training in Medicine",
arXiv:2601.22124, has the validation loss per token; all else here is ours (docs/methods.md, section
3). Nats per *answer* are the sum over an answer's supervised tokens: of these most only copy the
sentence, so that a site whose every label is wrong loses hundredths of a nat a token, and several
nats an answer.
"""

from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp

from fedmedjax import tree
from fedmedjax.fed.types import Array, Tree
from fedmedjax.types import SERVER


class Utility(Protocol):
  """What stands for the validation loss l_k f32[C] in the weights; a lower value weighs more."""

  def __call__(self, *_: Any, **inputs: Any) -> Array:
    """Keyword arguments of `Aggregator.update` -> f32[C]; not finite = the site gets weight 0.

    Given: all that an update is given, and updates [C, *p], local [C, *p], anchor [*p], cohort
    i32[C], shares f32[C] (the size weights, sum 1; 0 = nothing arrived), formed_loss (weights
    f32[Q, C] -> f32[Q, G], nats per answer of the adapter that the server would have with each,
    joined with what it would fold into the base). A utility names those it needs and ends with
    `**_`.
    """


class Signal(NamedTuple):
  """A utility f32[C], and what the weights and the rest of the method have to know of it."""

  utility: Utility
  # True = it is divided by max(1, its standard deviation over the sites that can be used).
  standardised: bool = False
  needs: frozenset[str] = frozenset()   # of `Aggregator.needs`, where it weighs anything


def site_losses(*, local: Tree, validation_loss, **_) -> Array:
  """l_k: the validation loss of each site's adapter [C, *p] -> f32[C], nats per token.

  The utility of Fed-MedLoRA+, arXiv:2601.22124.
  """
  return validation_loss(local)


def site_answers(*, local: Tree, answer_loss, **_) -> Array:
  """A_k: nats per answer of each site's adapter [C, *p] on V, mean over groups -> f32[C]. Ours."""
  return answer_loss(local).mean(axis=1)


def peer_judgement(
  *, local: Tree, shares: Array, cohort: Array, answer_loss, group_site: Array, **_
) -> Array:
  """u_k, see `judged_by_others`, of a_kg: nats per answer of site k's adapter -> f32[C]. Ours.

  Args:
    local: the sites' adapters, [C, *p].
    shares: f32[C], 0 = nothing arrived.
    cohort: i32[C], numbers of the sites.
    answer_loss: adapters [C, *p] -> f32[C, G], nats per answer of each group of V.
    group_site: i32[G], the site of each group; -1 = the server, whose notes are nobody's own.
  """
  return judged_by_others(answer_loss(local), shares > 0, cohort, group_site)


def leave_one_out(*, shares: Array, cohort: Array, formed_loss, group_site: Array, **_) -> Array:
  """u_k of -I_kg, I_kg = A_g(average without k) - A_g(average of all) -> f32[C]. Ours.

  Nats per answer on group g; see `judged_by_others` for u. The averages are by size, and formed as
  the aggregator forms them: of products, with what joins the base.

  Args:
    shares: f32[C], the size weights, sum 1; a site of share 0 gets NaN.
    cohort: i32[C], numbers of the sites.
    formed_loss: weights f32[Q, C] -> f32[Q, G]; weights of 0 give the anchor.
    group_site: i32[G], as for `peer_judgement`.
  """
  rest = shares[None] * (1.0 - jnp.eye(len(shares), dtype=shares.dtype))
  rest = rest / jnp.maximum(rest.sum(axis=1, keepdims=True), 1e-30)
  losses = formed_loss(jnp.concatenate([rest, shares[None]]))
  return judged_by_others(losses[-1:] - losses[:-1], shares > 0, cohort, group_site)


def alignment(
  *, updates: Tree, shares: Array, cohort: Array, answer_slopes, group_site: Array, **_
) -> Array:
  """u_k of -I_kg = <grad A_g(average), update_k>, nats per answer to first order -> f32[C]. Ours.

  How fast the loss of the average by size, factor by factor, rises with the weight of site k, but
  for what is the same for all sites. Costs one gradient of the validation loss a round, whatever
  the number of sites. The gradient is the average's: at the anchor it says little of where a round
  of many steps leads, and by it damaged sites were preferred.

  Args:
    updates: [C, *p].
    shares: f32[C], 0 = nothing arrived.
    cohort: i32[C], numbers of the sites.
    answer_slopes: (updates [C, *p], step [*p]) -> f32[C, G], at anchor + step.
    group_site: i32[G], as for `peer_judgement`.
  """
  slopes = answer_slopes(updates, tree.weighted_sum(updates, shares))
  return judged_by_others(slopes, shares > 0, cohort, group_site)


def judged_by_others(values: Array, arrived: Array, cohort: Array, group_site: Array) -> Array:
  """u_k = median over g != k of (x_kg - mean over j != g of x_jg) -> f32[C], in x's unit. Ours.

  x_kg is the plain mean over the groups of site g. k and j are the sites whose update has arrived;
  the judges g are those of them that have validation notes, and the server where it has notes of
  its own. So no site is judged on its own notes, and fewer than half of the judges may have damaged
  ones. Whom nobody can judge has the neutral 0, and of two sites both have: each judge compares a
  single one with itself. A site of which a judge's x_kg is not finite has NaN, and counts in no
  mean.

  Args:
    values: f32[C, G], what is thought of each site on each group of V; less is better.
    arrived: bool[C].
    cohort: i32[C], numbers of the sites.
    group_site: i32[G], as for `peer_judgement`.
  """
  judges = jnp.concatenate([cohort, jnp.full(1, SERVER, cohort.dtype)])
  owned = judges[:, None] == group_site[None]
  values = jnp.where(owned[None], values[:, None], 0).sum(axis=2)
  values = values / jnp.maximum(owned.sum(axis=1), 1)[None]
  judged = (
    arrived[:, None] & (owned.any(axis=1) & jnp.append(arrived, True))[None]
    & (cohort[:, None] != judges[None]))
  usable = arrived & (jnp.isfinite(values) | ~judged).all(axis=1)
  judged &= usable[:, None]
  values = jnp.where(judged, values, 0)
  means = values.sum(axis=0, keepdims=True) / jnp.maximum(judged.sum(axis=0, keepdims=True), 1)
  middle = jnp.nanmedian(jnp.where(judged, values - means, jnp.nan), axis=1)
  return jnp.where(usable, jnp.where(judged.any(axis=1), middle, 0), jnp.nan)

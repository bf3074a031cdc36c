"""How the sites' updates become one: a row of AGGREGATORS for each value of config.fed.aggregator.

A new aggregator is a file beside these, or a user's own, with a builder that returns an
`Aggregator`, and one row here. The builder is called with those hyper-parameters of the run that
its signature names: the keys of config.fed, and rank, num_sites and cohort_size.
"""

from collections.abc import Callable
from typing import Any

from fedmedjax.fed.aggregators import (
  cores,
  fair,
  gauges,
  normalised,
  products,
  robust,
  secure,
  signals,
  weighted_mean,
)
from fedmedjax.fed.aggregators.signals import Signal
from fedmedjax.fed.builders import build
from fedmedjax.fed.types import Aggregator, Combine

# What stands for l_k in the weights of a mean, by config.fed.signal; all but the last ask the
# server's validation set. What compares sites with each other has a scale that grows with the
# length of their steps: it is standardised.
SIGNALS = {
  'loss': Signal(signals.site_losses),
  'answer': Signal(signals.site_answers),
  'peer': Signal(signals.peer_judgement, standardised=True, needs=frozenset({'peers'})),
  'loo': Signal(signals.leave_one_out, standardised=True),
  'grad': Signal(signals.alignment, standardised=True),
  'product_norm': Signal(products.product_norms),
}


def weighted(combine: Callable[..., Combine]) -> Callable[..., Aggregator]:
  """The builder of a weighted mean [C, *p] -> [*p] that is formed as `combine` says."""

  def build_mean(**values: Any) -> Aggregator:
    return build(weighted_mean.adaptive_mean, values | {
      'signal': SIGNALS[values['signal']], 'combine': build(combine, values)})

  return build_mean


def factor_mean(secure_aggregation: bool) -> Combine:
  """The mean of factors, of plain updates or of masked ones, [C, *p] -> [*p]."""
  return secure.masked_mean() if secure_aggregation else weighted_mean.factor_mean()


def orthogonalised_mean(secure_aggregation: bool) -> Combine:
  """FedSVD's mean of factors, of plain updates or of masked ones, [C, *p] -> [*p]."""
  return gauges.orthogonalised(factor_mean(secure_aggregation))


def of_sums(builder: Callable[..., Aggregator]) -> Callable[..., Aggregator]:
  """The builder of an aggregator [C, *p] -> [*p] that a sum of weighted updates is enough for."""

  def build_sum(**values: Any) -> Aggregator:
    return build(builder, values | {'combine': factor_mean(values['secure_aggregation'])})

  return build_sum


AGGREGATORS: dict[str, Callable[..., Aggregator]] = {
  'mean': weighted(factor_mean),
  'padded_mean': weighted(products.padded_mean),
  'refactorised': weighted(products.refactorised),
  'stacked': weighted(products.stacked),
  'residual': weighted(products.with_residual),
  'corrected': weighted(products.corrected),
  'aligned': weighted(gauges.aligned),
  'orthogonalised': weighted(orthogonalised_mean),
  'cores': weighted(cores.scaled_cores),
  'normalised': of_sums(normalised.normalised_mean),
  'q_fedavg': fair.q_fedavg,
  'agnostic': of_sums(fair.agnostic),
  'median': robust.median,
  'trimmed_mean': robust.trimmed_mean,
  'geometric_median': robust.geometric_median,
  'krum': robust.krum,
  'clipped_mean': robust.clipped_mean,
}

"""The method part of a configuration: config.fed to the parts of a federated algorithm.

The tables map names of the configuration to values; which names go together is `check_method`'s.
"""

from functools import partial
from typing import Any

from ml_collections import ConfigDict

from fedmedjax.fed.aggregators import (
  COMBINES,
  FOLDING,
  ROBUST,
  SIGNALS,
  secure,
  weighted_mean,
)
from fedmedjax.fed.local import adamw, sgd
from fedmedjax.fed.ranks import mixed_ranks, same_ranks
from fedmedjax.fed.rules import RULES
from fedmedjax.fed.server import SERVER_OPTIMIZERS
from fedmedjax.fed.types import Aggregator
from fedmedjax.store.files import HARMLESS


def algorithm_parts(config: ConfigDict, learning_rate: float) -> dict:
  """Keyword arguments of `federated_algorithm` that the method decides.

  Args:
    learning_rate: peak, of the sites' AdamW.
  """
  fed, optim = config.fed, config.optim
  local_optimizers = {
    'adamw': partial(
      adamw, learning_rate, b1=optim.b1, b2=optim.b2, eps=optim.eps,
      weight_decay=optim.weight_decay, clip_norm=optim.clip_norm,
      warmup_share=optim.warmup_share),
    'sgd': partial(sgd, optim.sgd_learning_rate),
  }
  return dict(
    optimizer=local_optimizers[fed.local_optimizer](),
    rule=RULES[fed.rule](strength=fed.rule_strength, rate=optim.sgd_learning_rate),
    ranks=mixed_ranks(fed.ranks, config.lora.rank) if fed.ranks else same_ranks(),
    aggregator=aggregator(config, fed.rounds),
    server_optimizer=SERVER_OPTIMIZERS[fed.server_optimizer](
      learning_rate=fed.server_learning_rate, momentum=fed.server_momentum, b2=fed.server_b2,
      tau=fed.server_tau),
  )


def aggregator(config: ConfigDict, rounds: int) -> Aggregator:
  """config.fed's, with room for what as many rounds fold into the base."""
  fed, rank = config.fed, config.lora.rank
  if fed.aggregator in ROBUST:
    return ROBUST[fed.aggregator](fed)
  columns = cohort_size({
    'fed.pooled': fed.pooled, 'fed.cohort_size': fed.cohort_size,
    'data.sites': config.data.sites, 'data.partition.kind': config.data.partition.kind,
    'data.partition.sites': config.data.partition.sites}) * rank
  combine = secure.masked_mean() if fed.secure_aggregation else (
    COMBINES[fed.aggregator](fed, rank, rounds, columns))
  return weighted_mean.adaptive_mean(
    size_power=fed.size_power, loss_power=fed.loss_power, temperature=fed.temperature,
    floor=fed.floor, ema=fed.ema, signal=SIGNALS[fed.signal],
    combine=combine)


def harmless_keys(settings: dict[str, Any]) -> tuple[str, ...]:
  """Keys and groups of keys in which a run may differ from its continuation.

  Aggregators that add to the base lay out the room for it once, for all rounds: their number of
  rounds is fixed.
  """
  fixed = ('fed.rounds',) if settings['fed.aggregator'] in FOLDING else ()
  return tuple(key for key in HARMLESS if key not in fixed)


def num_sites(values: dict[str, Any]) -> int:
  """S: how many sites own training notes."""
  dealt_out = values['data.partition.kind']
  return values['data.partition.sites'] if dealt_out else len(values['data.sites'])


def cohort_size(values: dict[str, Any]) -> int:
  """C: how many sites are drawn for a round."""
  return 1 if values['fed.pooled'] else values['fed.cohort_size'] or num_sites(values)


def adds_aggregate(fed: ConfigDict) -> bool:
  """Whether the server's step is the aggregate itself, which every round then checks."""
  return fed.server_optimizer == 'fedavg' and fed.server_learning_rate == 1.0


def needs_validation(values: dict[str, Any]) -> bool:
  """Whether weights are made from the server's validation set."""
  return values['fed.loss_power'] > 0 and values['fed.signal'] != 'product_norm'


"""The method part of a configuration: config.fed to the parts of a federated algorithm.

The tables map names of the configuration to values; which names go together is `check_method`'s.
"""

from functools import partial
from typing import Any

from ml_collections import ConfigDict

from fedmedjax.fed.aggregators import products, robust, secure, weighted_mean
from fedmedjax.fed.local import adamw, sgd
from fedmedjax.fed.ranks import mixed_ranks, same_ranks
from fedmedjax.fed.rules import RULES, SENT_CONTROL, STATEFUL
from fedmedjax.fed.server import SERVER_OPTIMIZERS
from fedmedjax.fed.types import Aggregator
from fedmedjax.types import InputError

# What stands for l_k in the weights; the first three ask the server's validation set.
SIGNALS = {
  'loss': weighted_mean.site_losses, 'loo': weighted_mean.leave_one_out,
  'grad': weighted_mean.alignment, 'product_norm': products.product_norms,
}

# Weighted means, by how they are formed: (config.fed, rank, rounds, columns that a round folds if
# the residual or the stack is whole) -> Combine.
COMBINES = {
  'mean': lambda fed, rank, rounds, columns: weighted_mean.factor_mean(),
  'padded_mean': lambda fed, rank, rounds, columns: products.padded_mean(),
  'refactorised': lambda fed, rank, rounds, columns: products.refactorised(rank),
  'stacked': lambda fed, rank, rounds, columns: products.stacked(rounds * columns),
  'residual': lambda fed, rank, rounds, columns: products.with_residual(
    rounds * (fed.residual_rank or columns), fed.residual_rank),
  'corrected': lambda fed, rank, rounds, columns: products.corrected(fed.fair_penalty),
}
ROBUST = {
  'median': lambda fed: robust.median(),
  'trimmed_mean': lambda fed: robust.trimmed_mean(fed.trim),
  'geometric_median': lambda fed: robust.geometric_median(size_power=fed.size_power),
  'krum': lambda fed: robust.krum(faulty=fed.faulty, kept=fed.kept),
  'clipped_mean': lambda fed: robust.clipped_mean(
    limit=fed.norm_limit, size_power=fed.size_power),
}
AGGREGATORS = (*COMBINES, *ROBUST)
# These add to the base every round; the room for it is laid out for all rounds at the start. What
# of it travels, in columns: (config.fed, lora.rank, ranks of the cohort's sites). Of a stack, what
# each site has; a residual holds the mean of all in every site's columns.
FOLDING = {
  'stacked': lambda fed, rank, ranks: sum(ranks),
  'residual': lambda fed, rank, ranks: fed.residual_rank or rank * len(ranks),
}
PRODUCTS = ('refactorised', 'corrected', *FOLDING)


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


def _krum_sites(v) -> bool:
  return v['fed.aggregator'] == 'krum' and cohort_size(v) < 2 * v['fed.faulty'] + 3


def _krum_kept(v) -> bool:
  return v['fed.aggregator'] == 'krum' and v['fed.kept'] > cohort_size(v) - v['fed.faulty']


def _needs_plain_sum(v) -> bool:
  plain = v['fed.server_optimizer'] == 'fedavg' and v['fed.server_learning_rate'] == 1.0
  return v['fed.aggregator'] in (*PRODUCTS, 'padded_mean') and not plain


def _lossy(v) -> bool:
  return v['fed.outbound'] != 'float32' or v['fed.top_k'] < 1 or v['fed.clip_update'] > 0


def _secure(v, fails: bool) -> bool:
  return v['fed.secure_aggregation'] and fails


# (what is wrong, the key to name, why): the first that holds is the error.
UNSOUND = (
  (lambda v: v['fed.learner'] == 'bert' and v['fed.aggregator'] in (*PRODUCTS, 'padded_mean'),
   'fed.aggregator', 'a classifier has no factors A and B to multiply'),
  (lambda v: v['fed.learner'] == 'bert' and v['fed.signal'] == 'product_norm', 'fed.signal',
   'a classifier has no factors A and B to multiply'),
  (lambda v: v['fed.learner'] == 'bert' and v['fed.sharing'] not in ('everything', 'nothing'),
   'fed.sharing', "a classifier has no factors A and B; use 'everything' or 'nothing'"),
  (lambda v: v['fed.learner'] == 'bert' and v['fed.ranks'], 'fed.ranks',
   'a classifier has no rank; use ()'),
  (lambda v: v['fed.rule'] == 'scaffold' and v['fed.local_optimizer'] != 'sgd',
   'fed.local_optimizer',
   'SCAFFOLD reads the mean gradient off the path of plain steps, which Adam does not leave; use '
   "'sgd'"),
  (lambda v: v['fed.rule'] in STATEFUL and (v['fed.size_power'] or v['fed.loss_power']),
   'fed.size_power',
   'control variates are averaged plainly and lead to the optimum of the plain mean whatever the '
   'weights; set size_power and loss_power to 0'),
  (lambda v: v['fed.rule'] in STATEFUL and v['fed.sharing'] == 'alternating', 'fed.sharing',
   'control variates would go stale in the rounds that freeze their factor'),
  (lambda v: v['fed.rule'] in STATEFUL and v['fed.ranks'], 'fed.ranks',
   'sites of unlike rank have unlike scales, so their control variates cannot be averaged'),
  (lambda v: v['fed.rule'] in STATEFUL and v['fed.aggregator'] in (*PRODUCTS, 'padded_mean'),
   'fed.aggregator',
   'control variates follow the factors from round to round, this aggregator replaces them'),
  (lambda v: v['fed.sharing'] == 'nothing' and v['fed.rule'] != 'plain', 'fed.rule',
   "local rules pull towards what is shared; with sharing 'nothing' use 'plain'"),
  (_krum_sites, 'fed.faulty', 'Krum needs at least 2 f + 3 sites a round'),
  (_krum_kept, 'fed.kept', 'Multi-Krum keeps at most n - f sites'),
  (lambda v: v['fed.aggregator'] in ROBUST and (v['fed.loss_power'] or v['fed.floor']
                                                or v['fed.ema']),
   'fed.aggregator', 'robust aggregators choose their own weights; set loss_power, floor and ema '
   'to 0'),
  (lambda v: v['fed.aggregator'] in ROBUST and v['fed.ranks'], 'fed.ranks',
   'columns that a site lacks would be votes for 0; robust aggregators need one rank'),
  (lambda v: v['fed.aggregator'] in (*PRODUCTS, 'padded_mean')
   and v['fed.sharing'] != 'everything', 'fed.sharing',
   "this aggregator needs both factors of every site; use 'everything'"),
  (lambda v: v['fed.loss_power'] and v['fed.sharing'] == 'only_a', 'fed.loss_power',
   "the server's B stays at zero: there is no product that a validation loss could judge; use 0"),
  (_needs_plain_sum, 'fed.server_optimizer',
   "this aggregator gives the next adapter itself; use 'fedavg' with server_learning_rate 1"),
  (lambda v: v['fed.aggregator'] in FOLDING and v['model.quantization'] != 'none',
   'fed.aggregator', 'it adds to the weights of the base, which a quantised base cannot hold '
   'exactly'),
  (lambda v: v['fed.residual_rank'] > cohort_size(v) * v['lora.rank'], 'fed.residual_rank',
   'the whole residual has no more than sites times lora.rank columns; 0 sends all of it'),
  (lambda v: v['fed.ranks'] and (v['fed.pooled'] or len(v['fed.ranks']) != num_sites(v)),
   'fed.ranks',
   'one rank for each site of config.data.sites, or of the partition, is needed'),
  (lambda v: any(rank > v['lora.rank'] for rank in v['fed.ranks']), 'fed.ranks',
   'no site may have more than config.lora.rank'),
  (lambda v: v['fed.aggregator'] in FOLDING and v['fed.sampler'] == 'poisson', 'fed.sampler',
   "the room for what joins the base is for cohorts of one size; use 'uniform' or 'size'"),
  (lambda v: v['fed.aggregator'] in ('median', 'trimmed_mean', 'krum')
   and v['fed.sampler'] == 'size', 'fed.sampler',
   'sites drawn by size are weighed to undo it, and this aggregator takes no weights; use '
   "'uniform'"),
  (lambda v: v['fed.ranks'] and v['fed.outbound'] == 'sign', 'fed.outbound',
   'columns that a site lacks would count in the mean that is the size of all its values'),
  (lambda v: v['fed.ranks'] and v['fed.top_k'] < 1, 'fed.top_k',
   'the share would be of the values of lora.rank, of which a site of lower rank lacks some; use '
   '1.0'),
  (lambda v: v['fed.error_feedback'] and v['fed.sharing'] == 'alternating', 'fed.error_feedback',
   'what is owed of a factor would be paid in the round that freezes it, and so be lost'),
  (lambda v: v['fed.error_feedback'] and v['fed.aggregator'] in ('refactorised', 'stacked'),
   'fed.error_feedback',
   'what is owed is of factors that this aggregator replaces by others after every round'),
  (lambda v: v['fed.rule'] == 'feddyn' and _lossy(v), 'fed.rule',
   "FedDyn's server makes its control variate of the sites' whole updates; send them in float32, "
   'without top_k and clip_update'),
  (lambda v: _secure(v, v['fed.loss_power'] > 0), 'fed.secure_aggregation',
   "weights by a signal, such as Fed-MedLoRA+'s, need every site's own update, of which the server "
   'learns the sum only; set loss_power to 0'),
  (lambda v: _secure(v, v['fed.aggregator'] != 'mean'), 'fed.secure_aggregation',
   "this aggregator needs every site's own update, of which the server learns the sum only; use "
   "aggregator 'mean'"),
  (lambda v: _secure(v, v['fed.outbound'] != 'float32' or v['fed.top_k'] < 1),
   'fed.secure_aggregation',
   "a masked message has 32 bits a value whatever a codec leaves of it; use outbound 'float32' and "
   'top_k 1'),
  (lambda v: _secure(v, bool(v['fed.ranks'])), 'fed.secure_aggregation',
   'masks of a pair have one shape, updates of sites of unlike rank have not; use ranks ()'),
  (lambda v: _secure(v, v['fed.rule'] in SENT_CONTROL), 'fed.secure_aggregation',
   "a site's control variate would travel without a mask; use rule 'plain'"),
  (lambda v: _secure(v, not v['fed.pooled'] and cohort_size(v) < 2), 'fed.secure_aggregation',
   'the sum of one update is that update; at least 2 sites a round are needed'),
)


def check_method(values: dict[str, Any]) -> None:
  """Raises InputError for parts that do not go together, before anything is compiled.

  Args:
    values: flat configuration, {'fed.rule': 'plain', ...}, each value allowed on its own.
  """
  for holds, key, reason in UNSOUND:
    if holds(values):
      raise InputError(f"config.{key}={values[key]!r}: preset {values['fed.preset']!r}: {reason}")

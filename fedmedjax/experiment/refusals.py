"""Parts of a method that do not go together, and why."""

from typing import Any

from fedmedjax.experiment.methods import cohort_size, num_sites
from fedmedjax.fed.aggregators import FOLDING, PRODUCTS, ROBUST
from fedmedjax.fed.rules import SENT_CONTROL, STATEFUL
from fedmedjax.types import InputError


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

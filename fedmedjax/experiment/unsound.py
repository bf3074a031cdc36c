"""What can be wrong with the parts of a method together: predicates on (flat values, traits).

Each says whether the combination that it is named after is there; `refusals.py` has the reasons.
"""

from collections.abc import Callable

from fedmedjax.experiment.methods import Values, cohort_size, num_sites
from fedmedjax.experiment.traits import Traits

# A classifier has no adapters.


def classifier_multiplies(v: Values, parts: Traits) -> bool:
  return v['fed.learner'] == 'bert' and bool(parts.needs & {'both_factors', 'moved_pairs'})


def classifier_weighs_products(v: Values, parts: Traits) -> bool:
  return v['fed.learner'] == 'bert' and v['fed.signal'] == 'product_norm'


def classifier_shares_factors(v: Values, parts: Traits) -> bool:
  return v['fed.learner'] == 'bert' and v['fed.sharing'] in (
    'only_b', 'only_a', 'alternating', 'served_a', 'cores')


def classifier_has_ranks(v: Values, parts: Traits) -> bool:
  return v['fed.learner'] == 'bert' and bool(v['fed.ranks'])


# Local rules.


def adaptive_steps(v: Values, parts: Traits) -> bool:
  return 'plain_sgd' in parts.needs and v['fed.local_optimizer'] != 'sgd'


def weighted_control(v: Values, parts: Traits) -> bool:
  return 'plain_mean' in parts.needs and bool(v['fed.size_power'] or v['fed.loss_power'])


def stale_control(v: Values, parts: Traits) -> bool:
  return 'steady_factors' in parts.needs and 'steady_leaves' not in parts.gives


def other_mean(v: Values, parts: Traits) -> bool:
  asked = parts.needs & {'plain_mean', 'steady_factors'}
  return bool(asked) and 'weighted_mean' not in parts.gives


def remembered_plain_mean(v: Values, parts: Traits) -> bool:
  uniform = 'weighted_mean' in parts.gives and not (v['fed.size_power'] or v['fed.loss_power'])
  return v['fed.ema'] > 0 and ('plain_mean' in parts.needs or uniform)


def control_of_ranks(v: Values, parts: Traits) -> bool:
  return {'steady_factors', 'one_rank'} <= parts.needs and bool(v['fed.ranks'])


def replaced_control(v: Values, parts: Traits) -> bool:
  return {'steady_factors', 'no_control_variates'} <= parts.needs


def nothing_to_pull_to(v: Values, parts: Traits) -> bool:
  return 'shared_anchor' in parts.needs and 'shared_leaves' not in parts.gives


def alone_with_itself(v: Values, parts: Traits) -> bool:
  return v['fed.pooled'] and 'shared_leaves' not in parts.gives


# Signals.


def judged_without_updates(v: Values, parts: Traits) -> bool:
  return _per_answer(v) and v['fed.loss_power'] > 0 and 'shared_leaves' not in parts.gives


def judged_alone(v: Values, parts: Traits) -> bool:
  return 'peers' in parts.needs and v['fed.pooled']


def signal_without_power(v: Values, parts: Traits) -> bool:
  return _per_answer(v) and not v['fed.loss_power'] and 'own_weights' not in parts.needs


def signal_without_weights(v: Values, parts: Traits) -> bool:
  return _per_answer(v) and not v['fed.loss_power'] and 'own_weights' in parts.needs


def peers_tuned(key: str) -> Callable[[Values, Traits], bool]:
  """Whether `key` of the weights, 1 in the method, is another number where peers judge."""
  return lambda v, parts: (
    'peers' in parts.needs and 'weighted_mean' in parts.gives and v[key] != 1)


def _per_answer(v: Values) -> bool:
  return v['fed.signal'] in ('answer', 'peer')


# Aggregators.


def too_few_for_krum(v: Values, parts: Traits) -> bool:
  return v['fed.aggregator'] == 'krum' and cohort_size(v) < 2 * v['fed.faulty'] + 3


def krum_keeps_too_many(v: Values, parts: Traits) -> bool:
  return v['fed.aggregator'] == 'krum' and v['fed.kept'] > cohort_size(v) - v['fed.faulty']


def weights_twice(v: Values, parts: Traits) -> bool:
  weighted = v['fed.loss_power'] or v['fed.floor'] or v['fed.ema']
  return 'own_weights' in parts.needs and bool(weighted)


def votes_for_zero(v: Values, parts: Traits) -> bool:
  return 'one_rank' in parts.needs and bool(v['fed.ranks'])


def one_factor_missing(v: Values, parts: Traits) -> bool:
  return 'both_factors' in parts.needs and 'all_leaves' not in parts.gives


def weighed_by_steps_twice(v: Values, parts: Traits) -> bool:
  return 'whole_steps' in parts.needs and v['simulation.deadline'] > 0


def frozen_for_the_server(v: Values, parts: Traits) -> bool:
  return 'moved_pairs' in parts.needs and 'moved_pairs' not in parts.gives


def no_product_to_judge(v: Values, parts: Traits) -> bool:
  return bool(v['fed.loss_power']) and 'whole_pairs' not in parts.gives


def server_steps_twice(v: Values, parts: Traits) -> bool:
  return 'plain_server' in parts.needs and 'adds_aggregate' not in parts.gives


def quantised_base(v: Values, parts: Traits) -> bool:
  return 'exact_base' in parts.needs and v['model.quantization'] != 'none'


def residual_too_wide(v: Values, parts: Traits) -> bool:
  return v['fed.residual_rank'] > cohort_size(v) * v['lora.rank']


def cohorts_of_unlike_size(v: Values, parts: Traits) -> bool:
  return 'fixed_cohort' in parts.needs and v['fed.sampler'] == 'poisson'


def draws_not_undone(v: Values, parts: Traits) -> bool:
  return 'unweighted' in parts.needs and v['fed.sampler'] == 'size'


# Ranks and the sampling of sites.


def ranks_of_others(v: Values, parts: Traits) -> bool:
  return bool(v['fed.ranks']) and (v['fed.pooled'] or len(v['fed.ranks']) != num_sites(v))


def rank_too_high(v: Values, parts: Traits) -> bool:
  return any(rank > v['lora.rank'] for rank in v['fed.ranks'])
# What is sent.


def ranks_with_one_sign(v: Values, parts: Traits) -> bool:
  return bool(v['fed.ranks']) and v['fed.outbound'] == 'sign'


def ranks_with_largest(v: Values, parts: Traits) -> bool:
  return bool(v['fed.ranks']) and v['fed.top_k'] < 1


def owed_to_frozen(v: Values, parts: Traits) -> bool:
  return v['fed.error_feedback'] and 'steady_leaves' not in parts.gives


def owed_to_replaced(v: Values, parts: Traits) -> bool:
  return v['fed.error_feedback'] and 'no_error_feedback' in parts.needs


def _lossy(v: Values) -> bool:
  return v['fed.outbound'] != 'float32' or v['fed.top_k'] < 1 or v['fed.clip_update'] > 0


def cut_updates(v: Values, parts: Traits) -> bool:
  return 'whole_updates' in parts.needs and _lossy(v)


# Secure aggregation.


def secure_weights(v: Values, parts: Traits) -> bool:
  return v['fed.secure_aggregation'] and v['fed.loss_power'] > 0


def secure_single_updates(v: Values, parts: Traits) -> bool:
  return v['fed.secure_aggregation'] and 'single_updates' in parts.needs


def secure_codec(v: Values, parts: Traits) -> bool:
  return v['fed.secure_aggregation'] and (v['fed.outbound'] != 'float32' or v['fed.top_k'] < 1)


def secure_ranks(v: Values, parts: Traits) -> bool:
  return v['fed.secure_aggregation'] and bool(v['fed.ranks'])


def secure_control(v: Values, parts: Traits) -> bool:
  return v['fed.secure_aggregation'] and 'clear_control' in parts.needs


def secure_alone(v: Values, parts: Traits) -> bool:
  return v['fed.secure_aggregation'] and not v['fed.pooled'] and cohort_size(v) < 2


# What sites were worth.


def _worth(v: Values) -> bool:
  return v['fed.contribution'] != 'none'


def contribution_alone(v: Values, parts: Traits) -> bool:
  return _worth(v) and (v['fed.pooled'] or not v['fed.train'])


def contribution_under_masks(v: Values, parts: Traits) -> bool:
  return _worth(v) and v['fed.secure_aggregation']


def contribution_of_cores(v: Values, parts: Traits) -> bool:
  return _worth(v) and 'cores' in parts.needs


def contribution_of_nothing(v: Values, parts: Traits) -> bool:
  return _worth(v) and not {'whole_pairs', 'shared_leaves'} <= parts.gives


# Adapters with heads.


def heads_of_classifier(v: Values, parts: Traits) -> bool:
  return v['fed.heads'] > 0 and v['fed.learner'] == 'bert'


def heads_untrained(v: Values, parts: Traits) -> bool:
  return v['fed.heads'] > 0 and 'cores' not in parts.gives


def no_cores(v: Values, parts: Traits) -> bool:
  return 'cores' in parts.needs and 'cores' not in parts.gives


def heads_of_ranks(v: Values, parts: Traits) -> bool:
  return v['fed.heads'] > 0 and bool(v['fed.ranks'])


def heads_from_start(v: Values, parts: Traits) -> bool:
  return v['fed.heads'] > 0 and bool(v['lora.start'])


def heads_weighed_as_pairs(v: Values, parts: Traits) -> bool:
  return v['fed.heads'] > 0 and v['fed.signal'] == 'product_norm'

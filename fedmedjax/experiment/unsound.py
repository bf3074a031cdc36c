"""What can be wrong with the parts of a method together: predicates on (flat values, needs).

Each says whether the combination that it is named after is there; `refusals.py` has the reasons.
"""

from fedmedjax.experiment.methods import Values, cohort_size, num_sites
from fedmedjax.experiment.own_parts import is_own

Needs = frozenset[str]

# A classifier has no adapters.


def classifier_multiplies(v: Values, needs: Needs) -> bool:
  return v['fed.learner'] == 'bert' and 'both_factors' in needs


def classifier_weighs_products(v: Values, needs: Needs) -> bool:
  return v['fed.learner'] == 'bert' and v['fed.signal'] == 'product_norm'


def classifier_shares_factors(v: Values, needs: Needs) -> bool:
  return v['fed.learner'] == 'bert' and v['fed.sharing'] in ('only_b', 'only_a', 'alternating')


def classifier_has_ranks(v: Values, needs: Needs) -> bool:
  return v['fed.learner'] == 'bert' and bool(v['fed.ranks'])


# Local rules.


def adaptive_steps(v: Values, needs: Needs) -> bool:
  return 'plain_sgd' in needs and v['fed.local_optimizer'] != 'sgd'


def weighted_control(v: Values, needs: Needs) -> bool:
  return 'plain_mean' in needs and bool(v['fed.size_power'] or v['fed.loss_power'])


def stale_control(v: Values, needs: Needs) -> bool:
  return 'steady_factors' in needs and v['fed.sharing'] == 'alternating'


def control_of_ranks(v: Values, needs: Needs) -> bool:
  return {'steady_factors', 'one_rank'} <= needs and bool(v['fed.ranks'])


def replaced_control(v: Values, needs: Needs) -> bool:
  return {'steady_factors', 'no_control_variates'} <= needs


def nothing_to_pull_to(v: Values, needs: Needs) -> bool:
  return 'shared_anchor' in needs and v['fed.sharing'] == 'nothing'


# Aggregators.


def too_few_for_krum(v: Values, needs: Needs) -> bool:
  return v['fed.aggregator'] == 'krum' and cohort_size(v) < 2 * v['fed.faulty'] + 3


def krum_keeps_too_many(v: Values, needs: Needs) -> bool:
  return v['fed.aggregator'] == 'krum' and v['fed.kept'] > cohort_size(v) - v['fed.faulty']


def weights_twice(v: Values, needs: Needs) -> bool:
  return 'own_weights' in needs and bool(v['fed.loss_power'] or v['fed.floor'] or v['fed.ema'])


def votes_for_zero(v: Values, needs: Needs) -> bool:
  return 'one_rank' in needs and bool(v['fed.ranks'])


def one_factor_missing(v: Values, needs: Needs) -> bool:
  # Of a sharing of the user's own, `contracts.py` finds it out.
  shared = v['fed.sharing'] == 'everything' or is_own(v['fed.sharing'])
  return 'both_factors' in needs and not shared


def no_product_to_judge(v: Values, needs: Needs) -> bool:
  return bool(v['fed.loss_power']) and v['fed.sharing'] == 'only_a'


def server_steps_twice(v: Values, needs: Needs) -> bool:
  plain = v['fed.server_optimizer'] == 'fedavg' and v['fed.server_learning_rate'] == 1.0
  return 'plain_server' in needs and not plain


def quantised_base(v: Values, needs: Needs) -> bool:
  return 'exact_base' in needs and v['model.quantization'] != 'none'


def residual_too_wide(v: Values, needs: Needs) -> bool:
  return v['fed.residual_rank'] > cohort_size(v) * v['lora.rank']


def cohorts_of_unlike_size(v: Values, needs: Needs) -> bool:
  return 'fixed_cohort' in needs and v['fed.sampler'] == 'poisson'


def draws_not_undone(v: Values, needs: Needs) -> bool:
  return 'unweighted' in needs and v['fed.sampler'] == 'size'


# Ranks and the sampling of sites.


def ranks_of_others(v: Values, needs: Needs) -> bool:
  return bool(v['fed.ranks']) and (v['fed.pooled'] or len(v['fed.ranks']) != num_sites(v))


def rank_too_high(v: Values, needs: Needs) -> bool:
  return any(rank > v['lora.rank'] for rank in v['fed.ranks'])
# What is sent.


def ranks_with_one_sign(v: Values, needs: Needs) -> bool:
  return bool(v['fed.ranks']) and v['fed.outbound'] == 'sign'


def ranks_with_largest(v: Values, needs: Needs) -> bool:
  return bool(v['fed.ranks']) and v['fed.top_k'] < 1


def owed_to_frozen(v: Values, needs: Needs) -> bool:
  return v['fed.error_feedback'] and v['fed.sharing'] == 'alternating'


def owed_to_replaced(v: Values, needs: Needs) -> bool:
  return v['fed.error_feedback'] and 'no_error_feedback' in needs


def _lossy(v: Values) -> bool:
  return v['fed.outbound'] != 'float32' or v['fed.top_k'] < 1 or v['fed.clip_update'] > 0


def cut_updates(v: Values, needs: Needs) -> bool:
  return 'whole_updates' in needs and _lossy(v)


# Secure aggregation.


def secure_weights(v: Values, needs: Needs) -> bool:
  return v['fed.secure_aggregation'] and v['fed.loss_power'] > 0


def secure_single_updates(v: Values, needs: Needs) -> bool:
  return v['fed.secure_aggregation'] and 'single_updates' in needs


def secure_codec(v: Values, needs: Needs) -> bool:
  return v['fed.secure_aggregation'] and (v['fed.outbound'] != 'float32' or v['fed.top_k'] < 1)


def secure_ranks(v: Values, needs: Needs) -> bool:
  return v['fed.secure_aggregation'] and bool(v['fed.ranks'])


def secure_control(v: Values, needs: Needs) -> bool:
  return v['fed.secure_aggregation'] and 'clear_control' in needs


def secure_alone(v: Values, needs: Needs) -> bool:
  return v['fed.secure_aggregation'] and not v['fed.pooled'] and cohort_size(v) < 2

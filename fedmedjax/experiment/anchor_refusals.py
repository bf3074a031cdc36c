"""What does not go with several adapters of the server or of a site, and why; see `refusals.py`."""

from collections.abc import Callable

from fedmedjax.experiment import unsound_anchors
from fedmedjax.experiment.methods import adds_aggregate
from fedmedjax.experiment.refusal import Refusal


def _alone(beside: Callable, named: str) -> list[Refusal]:
  """What is not built beside several adapters, whose key is `named`."""
  return [
    Refusal(beside(lambda v, parts, key=key, least=least: v[key] != least), key,
            f'is not built beside config.{named}; use {least!r}')
    for key, least in (('fed.heads', 0), ('fed.contribution', 'none'))]


_with_buffer = unsound_anchors.with_buffer
BUFFER = (
  Refusal(unsound_anchors.buffer_of_one_site, 'fed.buffer',
          'pooled training has one site, for which there is nothing to wait; use 0'),
  Refusal(unsound_anchors.buffer_too_large, 'fed.buffer',
          'no site is twice in a buffer; at most the number of sites is allowed'),
  Refusal(_with_buffer(lambda v, parts: v['fed.sampler'] != 'uniform'), 'fed.sampler',
          "sites start one by one when others have sent (config.fed.buffer); use 'uniform'"),
  Refusal(_with_buffer(lambda v, parts: v['fed.round_steps'] > 0), 'fed.round_steps',
          'who sends with whom (config.fed.buffer) follows from the steps that sites take, and '
          'cannot also decide about them; use 0'),
  *(Refusal(_with_buffer(lambda v, parts, key=key: v[key] > 0), key,
            'a server that does not wait (config.fed.buffer) is simulated with sites whose steps '
            'alone take time and which never fail; use 0')
    for key in ('simulation.bandwidth', 'simulation.failure', 'simulation.deadline')),
  Refusal(unsound_anchors.products_of_unlike_age, 'fed.aggregator',
          'updates of a buffer (config.fed.buffer) have started from unlike adapters, and only '
          "their weighted mean is one of changes; use 'mean'"),
  Refusal(_with_buffer(lambda v, parts: v['fed.loss_power'] > 0), 'fed.loss_power',
          'adapters that have started from unlike ones (config.fed.buffer) would be judged by '
          'their age; use 0'),
  Refusal(_with_buffer(lambda v, parts: unsound_anchors.controls(parts)), 'fed.rule',
          "control variates are of one anchor, and a buffer has several; use 'plain' or 'fedprox'"),
  Refusal(_with_buffer(lambda v, parts: 'steady_leaves' not in parts.gives), 'fed.sharing',
          'what is trained changes from round to round, which sites that started earlier '
          "(config.fed.buffer) do not know; use 'everything' or 'only_b'"),
  Refusal(_with_buffer(lambda v, parts: v['fed.secure_aggregation']), 'fed.secure_aggregation',
          'masks are of pairs of sites that start together, those of a buffer (config.fed.buffer) '
          'do not; use False'),
  *_alone(_with_buffer, 'fed.buffer'),
  Refusal(_with_buffer(lambda v, parts: bool(v['privacy.unit'])), 'privacy.unit',
          'the budget is planned for rounds that wait for their sites; with config.fed.buffer use '
          "''"),
)

_with_clusters = unsound_anchors.with_clusters
CLUSTERS = (
  Refusal(unsound_anchors.clusters_of_one_site, 'fed.clusters',
          'a group has a site at least; at most the number of sites is allowed, and 1 where '
          'training is pooled'),
  Refusal(unsound_anchors.clusters_not_of_all, 'fed.cohort_size',
          'sites are grouped once (config.fed.clusters), by the updates of a round in which all '
          "take part; use 0, and the sampler 'uniform'"),
  Refusal(_with_clusters(lambda v, parts: v['fed.buffer'] > 0), 'fed.buffer',
          'a buffer holds updates of some sites, which are grouped all at once '
          '(config.fed.clusters); use 0'),
  Refusal(_with_clusters(lambda v, parts: (
    'weighted_mean' not in parts.gives or 'fixed_rounds' in parts.needs)), 'fed.aggregator',
          'a group (config.fed.clusters) may be one site, and the base is one for all; use a '
          "weighted mean that adds nothing to it, such as 'mean'"),
  Refusal(_with_clusters(lambda v, parts: v['fed.loss_power'] > 0), 'fed.loss_power',
          "a group's sites would be judged on notes of other groups (config.fed.clusters); use 0"),
  Refusal(_with_clusters(lambda v, parts: unsound_anchors.controls(parts)), 'fed.rule',
          "control variates lead to one optimum for all, groups have several; use 'plain' or "
          "'fedprox'"),
  Refusal(_with_clusters(lambda v, parts: (
    not {'shared_leaves', 'whole_pairs'} <= parts.gives)), 'fed.sharing',
          'sites are grouped by the factors B that they send (config.fed.clusters); use '
          "'everything' or 'only_b'"),
  Refusal(_with_clusters(lambda v, parts: v['fed.secure_aggregation']), 'fed.secure_aggregation',
          'sites are grouped by their single updates (config.fed.clusters); use False'),
  *_alone(_with_clusters, 'fed.clusters'),
  Refusal(_with_clusters(lambda v, parts: bool(v['privacy.unit'])), 'privacy.unit',
          "who is in which group (config.fed.clusters) is no part of the budget; use ''"),
)

_with_two = unsound_anchors.with_two
DUAL = (
  Refusal(unsound_anchors.two_without_sites, 'fed.local_rank',
          'a second adapter is a LoRA of a site beside others, which neither pooled training nor '
          'a BERT has; use 0'),
  Refusal(unsound_anchors.global_not_shared, 'fed.sharing',
          'of two adapters (config.fed.local_rank) one is of all sites; use a sharing that sends '
          "whole updates, such as 'everything' or 'only_b'"),
  *(Refusal(_with_two(lambda v, parts, key=key, least=least: v[key] > least), key,
            f'is not built for two adapters a site (config.fed.local_rank); use {least}')
    for key, least in (('fed.clusters', 1), ('fed.buffer', 0))),
  *_alone(_with_two, 'fed.local_rank'),
  Refusal(_with_two(lambda v, parts: bool(v['fed.ranks'])), 'fed.ranks',
          'the second adapter (config.fed.local_rank) has one rank at all sites; use ()'),
  Refusal(_with_two(lambda v, parts: (
    'weighted_mean' not in parts.gives or 'both_factors' in parts.needs)), 'fed.aggregator',
          'in every other round nothing is sent (config.fed.local_rank), of which only a mean of '
          "updates makes nothing; use 'mean'"),
  Refusal(_with_two(lambda v, parts: unsound_anchors.controls(parts)), 'fed.rule',
          'control variates would go stale in the rounds of the second adapter '
          "(config.fed.local_rank); use 'plain' or 'fedprox'"),
  Refusal(_with_two(lambda v, parts: not adds_aggregate(v)), 'fed.server_optimizer',
          'a server with a memory would forget in every other round, in which nothing is sent '
          "(config.fed.local_rank); use 'fedavg' with server_learning_rate 1"),
  Refusal(_with_two(lambda v, parts: v['fed.secure_aggregation']), 'fed.secure_aggregation',
          'in every other round nothing is sent (config.fed.local_rank) that could be masked; use '
          'False'),
  Refusal(_with_two(lambda v, parts: bool(v['privacy.unit'])), 'privacy.unit',
          'rounds that send nothing (config.fed.local_rank) would be charged as if they did; use '
          "''"),
)

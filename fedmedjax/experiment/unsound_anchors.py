"""What does not go with several adapters of the server or a site: predicates as in `unsound.py`."""

from collections.abc import Callable

from fedmedjax.experiment.methods import Values, num_sites
from fedmedjax.experiment.traits import Traits


def controls(parts: Traits) -> bool:
  """Whether the rule has control variates."""
  return bool(parts.needs & {'steady_factors', 'plain_mean'})


# A server that does not wait, config.fed.buffer.


def with_buffer(fails: Callable[[Values, Traits], bool]) -> Callable[[Values, Traits], bool]:
  return lambda v, parts: v['fed.buffer'] > 0 and fails(v, parts)


def buffer_of_one_site(v: Values, parts: Traits) -> bool:
  return v['fed.buffer'] > 0 and v['fed.pooled']


def buffer_too_large(v: Values, parts: Traits) -> bool:
  return v['fed.buffer'] > num_sites(v)


def products_of_unlike_age(v: Values, parts: Traits) -> bool:
  return v['fed.buffer'] > 0 and (
    'weighted_mean' not in parts.gives or bool(parts.needs & {'both_factors', 'moved_pairs'}))


# Groups of sites, config.fed.clusters.


def with_clusters(fails: Callable[[Values, Traits], bool]) -> Callable[[Values, Traits], bool]:
  return lambda v, parts: v['fed.clusters'] > 1 and fails(v, parts)


def clusters_of_one_site(v: Values, parts: Traits) -> bool:
  return v['fed.clusters'] > 1 and (v['fed.pooled'] or v['fed.clusters'] > num_sites(v))


def clusters_not_of_all(v: Values, parts: Traits) -> bool:
  drawn = v['fed.cohort_size'] or num_sites(v)
  return v['fed.clusters'] > 1 and (drawn < num_sites(v) or v['fed.sampler'] == 'poisson')


# Two adapters a site, config.fed.local_rank.


def with_two(fails: Callable[[Values, Traits], bool]) -> Callable[[Values, Traits], bool]:
  return lambda v, parts: v['fed.local_rank'] > 0 and fails(v, parts)


def two_without_sites(v: Values, parts: Traits) -> bool:
  return v['fed.local_rank'] > 0 and (v['fed.pooled'] or v['fed.learner'] == 'bert')


def global_not_shared(v: Values, parts: Traits) -> bool:
  return v['fed.local_rank'] > 0 and not {'shared_leaves', 'whole_pairs'} <= parts.gives

"""Which leaves of the adapter are trained and which travel, as predicates on leaf paths.

Builders that go by a factor's name are given the adapter's paths, so that a pattern which matches
nothing is an error and not a run that trains nothing.
"""

import jax

from fedmedjax import tree
from fedmedjax.fed.types import Sharing, Tree
from fedmedjax.types import InputError


def everything() -> Sharing:
  """Fed-MedLoRA: A and B trained and sent."""
  return Sharing(trained=lambda path, number: True, shared=lambda path: True)


def nothing() -> Sharing:
  """Single-site training: every site keeps its own adapter."""
  return Sharing(trained=lambda path, number: True, shared=lambda path: False)


def only_b(paths: list[str]) -> Sharing:
  """FFA-LoRA: A stays as drawn at every site, B is trained and sent.

  Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024,
  arXiv:2403.12313. The mean of the products is then the product of the means.
  """
  factor_b = _ending(paths, '/b')
  return Sharing(trained=lambda path, number: path in factor_b, shared=lambda path: True)


def only_a(paths: list[str]) -> Sharing:
  """FedSA-LoRA: both are trained, only A is sent; B is each site's own.

  Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning", ICLR 2025,
  arXiv:2410.01463.
  """
  factor_a = _ending(paths, '/a')
  return Sharing(trained=lambda path, number: True, shared=lambda path: path in factor_a)


def alternating(paths: list[str]) -> Sharing:
  """RoLoRA: B is trained and sent in even rounds, A in odd ones, from round 0.

  Chen et al., "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA",
  NeurIPS 2025, arXiv:2502.01755. B comes first: while it is 0, A has no gradient.
  """
  factor_a, factor_b = _ending(paths, '/a'), _ending(paths, '/b')

  def trained(path, number):
    return (number % 2 == 0) & (path in factor_b) | (number % 2 == 1) & (path in factor_a)

  return Sharing(trained=trained, shared=lambda path: True)


def _ending(paths: list[str], suffix: str) -> frozenset[str]:
  found = frozenset(path for path in paths if path.endswith(suffix))
  if not found:
    raise InputError(
      f'config.fed.sharing: no leaf of the adapter ends in {suffix!r}; it has {", ".join(paths)}')
  return found


# Value of config.fed.sharing -> builder, which may name `paths`, the adapter's.
SHARINGS = {
  'everything': everything, 'nothing': nothing, 'only_b': only_b, 'only_a': only_a,
  'alternating': alternating,
}


def shared_part(sharing: Sharing, adapter: Tree, number: int) -> list:
  """The leaves that travel in round `number` (from 0), to count what is sent."""
  leaves = zip(tree.paths(adapter), jax.tree.leaves(adapter), strict=True)
  return [leaf for path, leaf in leaves if sharing.trained(path, number) and sharing.shared(path)]


def shares_all(sharing: Sharing, adapter: Tree) -> bool:
  """Whether one adapter serves all sites: no leaf is a site's own."""
  return all(sharing.shared(path) for path in tree.paths(adapter))

"""Which leaves of the adapter are trained and which travel, as predicates on leaf paths.

The leaves are A [..., D_in, r] with paths that end in '/a' and B [..., r, D_out] in '/b'. Builders
that select by a factor's name are given the adapter's paths, so that a name which matches nothing
is an error and not a run that trains nothing.
"""

from collections.abc import Callable
from typing import Any

import jax

from fedmedjax import tree
from fedmedjax.fed.types import Array, Sharing, Tree
from fedmedjax.types import InputError


def everything() -> Sharing:
  """Fed-MedLoRA, arXiv:2601.22124: A [..., D_in, r] and B [..., r, D_out] are trained and sent."""
  return Sharing(trained=lambda path, number: True, shared=lambda path: True)


def nothing() -> Sharing:
  """Single-site training: every leaf [*p] is trained and stays at its site."""
  return Sharing(trained=lambda path, number: True, shared=lambda path: False)


def only_b(paths: list[str]) -> Sharing:
  """FFA-LoRA: A [..., D_in, r] stays as it was drawn, B [..., r, D_out] is trained and sent.

  Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024,
  arXiv:2403.12313. All sites have the same A, so the mean of the products is the product of the
  means. And noise that hides a site, added to B alone, is noise of the same kind on the product:
  with A and B both noised it would be multiplied with itself, see `aggregators/private_mean.py`.
  The paper writes B A for the transpose of our A B; its A is ours.

  Args:
    paths: of all leaves of the adapter.

  Raises:
    InputError: when no path ends in '/b'.
  """
  factor_b = _ending(paths, '/b')
  return Sharing(trained=lambda path, number: path in factor_b, shared=lambda path: True)


def served_a(paths: list[str]) -> Sharing:
  """FedSVD: B [..., r, D_out] is trained and sent, A [..., D_in, r] is the server's to move.

  See `aggregators/gauges.py`; with an aggregator that leaves A alone it is `only_b`.

  Args:
    paths: of all leaves of the adapter.

  Raises:
    InputError: when no path ends in '/b'.
  """
  return only_b(paths)._replace(moved=lambda path, number: True)


def only_cores(paths: list[str]) -> Sharing:
  """RAVAN: cores [..., heads, r, r] and scalings [..., heads] are trained and sent, bases frozen.

  Raje et al., "Ravan: Multi-Head Low-Rank Adaptation for Federated Fine-Tuning", NeurIPS 2025,
  arXiv:2506.05568; see `model/heads.py`.

  Args:
    paths: of all leaves of the adapter.

  Raises:
    InputError: when no path ends in '/h', or none in '/s': see config.fed.heads.
  """
  trained = _ending(paths, '/h') | _ending(paths, '/s')
  return Sharing(trained=lambda path, number: path in trained, shared=lambda path: True)


def only_a(paths: list[str]) -> Sharing:
  """FedSA-LoRA: both factors are trained, A [..., D_in, r] is sent, B [..., r, D_out] is private.

  Guo et al., "Selective Aggregation for Low-Rank Adaptation in Federated Learning", ICLR 2025,
  arXiv:2410.01463.

  Args:
    paths: of all leaves of the adapter.

  Raises:
    InputError: when no path ends in '/a'.
  """
  factor_a = _ending(paths, '/a')
  return Sharing(trained=lambda path, number: True, shared=lambda path: path in factor_a)


def alternating(paths: list[str]) -> Sharing:
  """RoLoRA: B [..., r, D_out] is trained and sent in even rounds, A [..., D_in, r] in odd ones.

  Chen et al., "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA",
  NeurIPS 2025, arXiv:2502.01755. Rounds count from 0, and B comes first: while it is 0, A has no
  gradient. A round that changes nothing, since no site could be used, does not count.

  Args:
    paths: of all leaves of the adapter.

  Raises:
    InputError: when no path ends in '/a', or none in '/b'.
  """
  factor_a, factor_b = _ending(paths, '/a'), _ending(paths, '/b')
  either = factor_a.union(factor_b)

  def trained(path, number):
    return (number % 2 == (path in factor_a)) & (path in either)

  return Sharing(trained=trained, shared=lambda path: True)


def _ending(paths: list[str], suffix: str) -> frozenset[str]:
  """The paths that end in `suffix`; an InputError when there are none."""
  matching = frozenset(path for path in paths if path.endswith(suffix))
  if not matching:
    raise InputError(
      f'config.fed.sharing: no leaf of the adapter ends in {suffix!r}; it has {", ".join(paths)}')
  return matching


# Value of config.fed.sharing -> builder, which may name `paths`, the adapter's.
SHARINGS: dict[str, Callable[..., Sharing]] = {
  'everything': everything, 'nothing': nothing, 'only_b': only_b, 'only_a': only_a,
  'alternating': alternating, 'served_a': served_a,
  'cores': only_cores,
}


def moves(sharing: Sharing, path: str, number: Any) -> Any:
  """Whether the server moves a leaf after round `number` (from 0) -> bool, traced or not."""
  return sharing.shared(path) & (sharing.moved or sharing.trained)(path, number)


def shared_part(sharing: Sharing, adapter: Tree, number: int) -> list:
  """The leaves [*p] that travel in round `number` (from 0), to count the values that are sent."""
  leaves = zip(tree.paths(adapter), jax.tree.leaves(adapter), strict=True)
  return [leaf for path, leaf in leaves if sharing.trained(path, number) and sharing.shared(path)]


def sends(sharing: Sharing, adapter: Tree) -> bool:
  """Whether any leaf [*p] is shared at all, in whatever round."""
  return any(sharing.shared(path) for path in tree.paths(adapter))


def shown(sharing: Sharing, adapter: Tree, number: Array) -> Tree:
  """The adapter [*p] that the model sees in round `number`: zeros where it is not to see a leaf."""
  if sharing.shown is None:
    return adapter
  seen = sharing.shown
  return tree.select(adapter, lambda path: seen(path, number))


def shares_all(sharing: Sharing, adapter: Tree) -> bool:
  """Whether one adapter serves all sites: no leaf [*p] is private to a site."""
  return all(sharing.shared(path) for path in tree.paths(adapter))

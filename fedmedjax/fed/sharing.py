"""Which leaves of the adapter are trained and which travel, as predicates on leaf paths."""

import jax

from fedmedjax import tree
from fedmedjax.fed.types import Sharing, Tree


def everything() -> Sharing:
  """Fed-MedLoRA: A and B trained and sent."""
  return Sharing(trained=lambda path: True, shared=lambda path: True)


def nothing() -> Sharing:
  """Single-site training: every site keeps its own adapter."""
  return Sharing(trained=lambda path: True, shared=lambda path: False)


def shared_part(sharing: Sharing, adapter: Tree) -> list:
  """The leaves that travel, to count what is sent."""
  leaves = zip(tree.paths(adapter), jax.tree.leaves(adapter), strict=True)
  return [leaf for path, leaf in leaves if sharing.trained(path) and sharing.shared(path)]


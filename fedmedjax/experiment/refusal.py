"""What is refused: a predicate, the key to name, and the reason with a way out."""

from collections.abc import Callable
from typing import NamedTuple


class Refusal(NamedTuple):
  """One value, or one combination of values, that is refused."""

  # (flat configuration), or (it, traits of all parts) where parts of a method are looked at
  fails: Callable[..., bool]
  key: str      # of the configuration, named in the error
  reason: str   # and a way out

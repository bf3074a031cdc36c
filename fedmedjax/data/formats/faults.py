"""Errors of a file or folder, told at once rather than one at each run."""

import re
from pathlib import Path

from fedmedjax.types import InputError

_NAMED = 3  # of the other errors
_PLACE = re.compile(r'(.+?:\d+): ')


class Faults:
  """Collects InputErrors: `with faults:` around what may raise one goes on behind it."""

  def __init__(self):
    self.found: list[InputError] = []

  def __enter__(self) -> 'Faults':
    return self

  def __exit__(self, kind, error, trace) -> bool:
    if isinstance(error, InputError):
      self.found += error.parts or [error]
    return isinstance(error, InputError)

  def tell(self) -> None:
    """Raises the error that was found, or one line that tells the first and where others are."""
    if len(self.found) <= 1:
      for error in self.found:
        raise error
      return
    places = [_PLACE.match(str(error)) for error in self.found[1:]]
    where = list(dict.fromkeys(Path(place[1]).name for place in places if place))
    named = ', '.join(where[:_NAMED]) + ', ...' * (len(where) > _NAMED)
    more = len(self.found) - 1
    error = InputError(f'{self.found[0]} (and {more} more error{"s" if more > 1 else ""}'
                       f'{": " if named else ""}{named})')
    error.parts = self.found
    raise error

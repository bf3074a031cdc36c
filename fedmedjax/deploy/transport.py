"""How messages reach the sites: the seam between the server and whatever carries its bytes."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from fedmedjax.types import InputError

# What a site does with a message: bytes -> bytes, see `service.py`; it raises nothing.
Handle = Callable[[bytes], bytes]


# Of a deadline in seconds: clocks and timeouts of the operating system take no endless one.
_SHORTEST, _LONGEST = 1.0, 366 * 86400.0


def checked_deadline(seconds: Any, where: str) -> float:
  """A deadline that somebody has given, in seconds.

  Args:
    seconds: what was given.
    where: it was given, such as '--deadline'.

  Raises:
    InputError: it is no number, or not from a second to a year.
  """
  number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
  if not number or not _SHORTEST <= seconds <= _LONGEST:
    raise InputError(
      f'{where}={seconds!r}: seconds from {_SHORTEST:g} to {_LONGEST:.0f} (a year) are allowed')
  return float(seconds)


class Absent(NamedTuple):
  """A site gave no answer in time; `reason` is a part of a sentence, such as 'late'."""

  reason: str


class Transport(Protocol):
  """Carries one message to each of several sites and their answers back."""

  def exchange(
    self, messages: Mapping[str, bytes], deadline_seconds: float, /
  ) -> Mapping[str, bytes | Absent]:
    """{site: message} -> {site: answer}, with an entry for every site that is asked.

    What a site does not answer within `deadline_seconds` is `Absent`; an answer that comes later
    still may be given for a later message, and the server tells it by its nonce. It raises
    RuntimeError or OSError only where no site at all can be reached any more, such as a full disk.
    """
    ...

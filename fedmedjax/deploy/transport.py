"""How messages reach the sites: the seam between the server and whatever carries its bytes."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

# What a site does with a message: bytes -> bytes, see `service.py`; it raises nothing.
Handle = Callable[[bytes], bytes]


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

"""Sites in this process, one after the other: for tests and to try a study out."""

import time
from collections.abc import Mapping

from fedmedjax.deploy.transport import Absent, Handle


class InProcess:
  """The transport to sites whose `handle` is at hand."""

  def __init__(self, handles: Mapping[str, Handle]):
    """handles: {site: bytes -> bytes}."""
    self._handles = dict(handles)

  def exchange(
    self, messages: Mapping[str, bytes], deadline_seconds: float
  ) -> dict[str, bytes | Absent]:
    """Asks one site after the other, each within the deadline; see `Transport`."""
    answers: dict[str, bytes | Absent] = {}
    for site, message in messages.items():
      if site not in self._handles:
        answers[site] = Absent('is not here')
        continue
      begun = time.monotonic()
      try:
        answer = self._handles[site](message)
      except Exception as error:  # noqa: BLE001 - as a process that dies, whatever of
        answers[site] = Absent(f'failed: {(str(error).splitlines() or [""])[0]}')
        continue
      late = time.monotonic() - begun > deadline_seconds
      answers[site] = Absent('late') if late else answer
    return answers

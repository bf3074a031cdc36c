"""How many of a run's answers copy their sentence and how many cannot be read, as counts."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Rates(NamedTuple):
  """Answers of some sites."""

  asked: int
  copied: int      # those that copy their sentence character for character
  unreadable: int  # those that had to be repaired before they could be read

  @property
  def copy_share(self) -> float:
    return self.copied / self.asked

  @property
  def unreadable_share(self) -> float:
    return self.unreadable / self.asked


def rates(scored: Mapping[str, Any], sites: Iterable[str]) -> Rates | None:
  """The counts of these sites added up.

  Args:
    scored: a summary, or its `zero_shot`; those of older versions have no counts.
    sites: names; those that were not tested count nothing.

  Returns:
    None where no answer was counted.
  """
  held = scored.get('answers') or {}
  found = [held[site] for site in sites if site in held]
  added = Rates(*(sum(one[key] for one in found) for key in Rates._fields))
  return added if added.asked else None


def out_of(part: float, whole: float) -> str:
  """A rate with what it is a rate of: '0.97 (117 of 120)'."""
  return f'{part / whole:.2f} ({part:,.10g} of {whole:,.10g})'


def groups(summary: Mapping[str, Any]) -> tuple[list[str], list[str]]:
  """(in-domain sites, external cohorts) that a run was tested on."""
  outside = [site for site in summary['scores'] if site in summary.get('external', ())]
  return [site for site in summary['scores'] if site not in outside], outside

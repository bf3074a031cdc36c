"""How a round is laid on the hardware: two dials that trade memory for time.

They change results by rounding only (tested), so they may differ between the rounds of a run.
"""

from collections.abc import Iterator
from typing import NamedTuple

from fedmedjax.model.llama import REMAT
from fedmedjax.runtime.phrases import many

# Values of config.fed.chunk and config.model.remat that leave the choice to `train/memory.py`.
AUTO_CHUNK, AUTO_REMAT = -1, 'auto'


class Execution(NamedTuple):
  """Values of config.fed.chunk and config.model.remat."""

  chunk: int   # sites computed at once; 0 = all
  remat: str   # a key of REMAT, whose order is from most memory to least

  def __str__(self) -> str:
    sites = many(self.chunk, 'site') if self.chunk else 'all sites'
    return f'{sites} at once, remat {self.remat}'


def executions(
  chunk: int, remat: str, sites: int, one_by_one: bool, groups: int = 1
) -> tuple[Execution, ...]:
  """What the configuration allows, from all sites and results at once to the smallest.

  On a CPU that is from the fastest on; on accelerators `train/memory.py` orders them by time.

  Args:
    chunk, remat: of the configuration.
    sites: C, of a round.
    one_by_one: sites at once lose to one after the other, and keeping all to remat 'products', as
      on a CPU (see `fed/sites.py`).
    groups: of devices, each with as many sites.
  """
  chunks = [chunk]
  if chunk == AUTO_CHUNK:
    chunks = [groups] if one_by_one else [0, *_halves(sites, groups)]
  remats = [remat]
  if remat == AUTO_REMAT:
    remats = list(REMAT)
    # Where memory is slow, what is kept costs more than what is made again.
    remats = remats[remats.index('products'):] if one_by_one else remats
  return tuple(Execution(count, kept) for count in chunks for kept in remats)


def smaller(execution: Execution, sites: int, groups: int = 1) -> Execution | None:
  """What a CPU tries when this one found no memory: half the sites at once, else a stronger remat.

  None when there is nothing smaller. `sites`: C, of a round; `groups`: see `executions`.
  """
  at_once = sites_at_once(execution, sites)
  if at_once > groups:
    return execution._replace(chunk=_halved(at_once, groups))
  stronger = list(REMAT)[list(REMAT).index(execution.remat) + 1:]
  return Execution(groups, stronger[0]) if stronger else None


def alternatives(
  execution: Execution, sites: int, groups: int = 1
) -> tuple[Execution, ...]:
  """What an accelerator may try when this one found no memory: with no more sites at once.

  Arguments as of `smaller`. They may need less memory or more.
  """
  at_once = sites_at_once(execution, sites)
  chunks = execution.chunk, *_halves(at_once, groups)
  return tuple(Execution(count, kept) for count in chunks for kept in REMAT)


def _halves(sites: int, groups: int) -> Iterator[int]:
  """Half of them, half of that, and so on, until each group has one."""
  while sites > groups:
    sites = _halved(sites, groups)
    yield sites


def _halved(sites: int, groups: int) -> int:
  """Half of them, as many for each group."""
  return -(-sites // (2 * groups)) * groups


def sites_at_once(execution: Execution, sites: int) -> int:
  return min(execution.chunk or sites, sites)

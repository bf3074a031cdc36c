"""How a round is laid on the hardware: two dials that trade memory for time.

They change results by rounding only (tested), so they may differ between the rounds of a run.
"""

from typing import NamedTuple

from fedmedjax.model.llama import REMAT

# Values of config.fed.chunk and config.model.remat that leave the choice to `memory.py`.
AUTO_CHUNK, AUTO_REMAT = -1, 'auto'


class Arrangement(NamedTuple):
  """Values of config.fed.chunk and config.model.remat."""

  chunk: int   # sites computed at once; 0 = all
  remat: str   # a key of REMAT, whose order is from most memory to least

  def __str__(self) -> str:
    return f"{self.chunk or 'all'} site(s) at once, remat {self.remat}"


def arrangements(
  chunk: int, remat: str, sites: int, one_by_one: bool
) -> tuple[Arrangement, ...]:
  """What the configuration allows, from the fastest to the smallest.

  Args:
    chunk, remat: of the configuration.
    sites: C, of a round.
    one_by_one: sites at once lose to one after the other, and keeping all to remat 'products', as
      on a CPU (see `fed/sites.py`).
  """
  chunks = [chunk]
  if chunk == AUTO_CHUNK:
    chunks = [1] if one_by_one else [0]
    while chunks[-1] != 1 and sites > 1:
      sites = -(-sites // 2)
      chunks.append(sites)
  remats = [remat]
  if remat == AUTO_REMAT:
    remats = list(REMAT)
    # Where memory is slow, what is kept costs more than what is made again.
    remats = remats[remats.index('products'):] if one_by_one else remats
  return tuple(Arrangement(count, kept) for count in chunks for kept in remats)


def smaller(arrangement: Arrangement, sites: int) -> Arrangement | None:
  """What to try when this one found no memory: half the sites at once, else a stronger remat.

  None when there is nothing smaller. `sites`: C, of a round.
  """
  at_once = sites_at_once(arrangement, sites)
  if at_once > 1:
    return arrangement._replace(chunk=-(-at_once // 2))
  stronger = list(REMAT)[list(REMAT).index(arrangement.remat) + 1:]
  return Arrangement(1, stronger[0]) if stronger else None


def sites_at_once(arrangement: Arrangement, sites: int) -> int:
  return min(arrangement.chunk or sites, sites)

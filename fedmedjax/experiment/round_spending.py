"""The rows that a round spends: who takes part, what was drawn, and what is asked of V."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fedmedjax.data.schedule import Schedule
from fedmedjax.experiment.accounting import JUDGED, TRAINED, Spending, gaussian
from fedmedjax.experiment.methods import Values
from fedmedjax.experiment.privacy_checks import SITE
from fedmedjax.types import InputError


class Planned(NamedTuple):
  """A row before the noise of training is known."""

  row: Spending  # sigma is a multiple of that noise where the row is `scaled`
  scaled: bool


# Of each site, by its number.
PlannedRows = dict[int, list[Planned]]


def priced(rows: Iterable[Planned], noise: float) -> list[Spending]:
  """The rows at a noise multiplier, those of the same kind as one, in order."""
  return merged(
    row._replace(sigma=row.sigma * noise) if scaled else row for row, scaled in rows)


def merged(rows: Iterable[Spending]) -> list[Spending]:
  """Rows of the same kind as one, in order."""
  steps: dict[Spending, int] = {}
  for row in rows:
    kind = row._replace(steps=0)
    steps[kind] = steps.get(kind, 0) + row.steps
  return [kind._replace(steps=count) for kind, count in sorted(steps.items()) if count]


def planned_rows(values: Values, plan: Schedule, sites: int) -> PlannedRows:
  """Rows of all planned rounds; see `planned_round`."""
  total: PlannedRows = {}
  for number in range(len(plan.plan)):
    for site, rows in planned_round(values, plan, sites, number).items():
      total.setdefault(site, []).extend(rows)
  return total


def planned_round(
  values: Values, plan: Schedule, sites: int, number: int,
  cohort: Sequence[int] | None = None, steps: Sequence[int] | None = None,
) -> PlannedRows:
  """Rows of one round.

  Args:
    values: the flat configuration, with a unit of privacy.
    plan: of all rounds.
    sites: S.
    number: of the round, from 0.
    cohort: i[C], who takes part; None = all as planned.
    steps: i[C], the steps that each of them takes; 0 = it sends nothing.
  """
  asks = bool(values['privacy.loss_noise']) and values['fed.loss_power'] > 0
  rows: PlannedRows = {}
  if values['privacy.unit'] == SITE:
    taking = [site for site, own in enumerate(plan.plan[number]) if own] if (
      cohort is None or steps is None) else [
        int(site) for site, count in zip(cohort, steps, strict=True) if count]
    for site, moved in _moved(values, plan, sites, number, taking).items():
      rows[site] = [Planned(gaussian(TRAINED, 1 / moved), True)]
    # V of every site is asked, whoever takes part.
    for site in range(sites) if asks and taking else ():
      rows.setdefault(site, []).append(
        Planned(gaussian(TRAINED, values['privacy.loss_noise']), False))
    return rows
  for drawn in plan.draws(number, cohort, steps):
    rows.setdefault(drawn.site, []).append(Planned(Spending(
      TRAINED, 1.0, float(drawn.probability), int(drawn.capacity), int(drawn.units),
      int(drawn.steps)), True))
  asked = asks and not values['data.server_validation'] and bool(rows)
  # Sentences of V are others than those trained on; parts of a long note may be in both.
  part_of = JUDGED if values['privacy.unit'] == 'example' else TRAINED
  for site, data in enumerate(plan.sites if asked else ()):
    if any(part.validation for part in data.tasks):
      rows.setdefault(site, []).append(
        Planned(gaussian(part_of, values['privacy.loss_noise']), False))
  return rows


def _moved(
  values: Values, plan: Schedule, sites: int, number: int, taking: Sequence[int]
) -> dict[int, float]:
  """By how many clips each site moves what round `number` releases, where sites are the units.

  Nothing is gained by drawing sites at random, since the lists of who took part are in the run's
  files. With correlated noise a site moves row t of C g by at most what the rounds that it takes
  part in add up to there, and each row is a Gaussian mechanism of its own.
  """
  if values['privacy.mechanism'] != 'banded':
    return dict.fromkeys(taking, 1.0)
  rounds = len(plan.plan)
  c = band_coefficients(rounds, min(values['privacy.bands'], rounds))
  moved = {}
  for site in range(sites):
    # As planned: whoever drops out moves it less.
    turns = [turn for turn in range(max(0, number - len(c) + 1), number + 1)
             if plan.plan[turn][site]]
    if total := float(sum(c[number - turn] for turn in turns)):
      moved[site] = total
  return moved


@lru_cache(8)
def band_coefficients(rounds: int, bands: int) -> tuple[float, ...]:
  """Coefficients of L2 norm 1 of the banded Toeplitz matrix whose noise hurts prefix sums least.

  Those of jax-privacy (Choquette-Choo et al., arXiv:2306.08153), made non-negative and not
  rising, so that what a site moves is most where its updates agree.

  Args:
    rounds: T.
    bands: b <= T.

  Raises:
    InputError: jax-privacy is not installed.
  """
  try:
    from jax_privacy.matrix_factorization import toeplitz
  except ImportError as error:
    raise InputError(
      f"config.privacy.mechanism='banded': {error.name} is not installed: "
      "pip install 'fedmedjax[privacy]'") from None
  c = np.asarray(toeplitz.optimize_banded_toeplitz(rounds, bands), np.float64)
  c = np.minimum.accumulate(np.maximum(c, 0))
  return tuple((c / np.linalg.norm(c)).tolist())

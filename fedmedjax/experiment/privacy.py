"""The privacy of a run: the noise that its budget asks for, and the ledger of what it has spent.

Who takes part, how many steps each site takes and how many units it has are known before a round
(they follow from the configuration and from sizes, which are public: docs/privacy.md). So a round's
rows are known before it, too, and whether it is within the budget. They are written into its line,
which is in its checkpoint: a run that was killed and goes on has spent what it had spent.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.data.schedule import Schedule
from fedmedjax.experiment import accounting
from fedmedjax.experiment.accounting import Spending
from fedmedjax.experiment.leaving import leaves_as
from fedmedjax.experiment.methods import Method
from fedmedjax.experiment.privacy_checks import SITE
from fedmedjax.experiment.round_spending import merged, planned_round, planned_rows, priced
from fedmedjax.fed.participation import Participation
from fedmedjax.fed.privacy import Private
from fedmedjax.types import InputError

KEY = 'privacy'  # of a round's line and of summary.json
Rows = dict[str, list[Spending]]  # of each site, by name
# (noise multiplier that is asked for) -> that of the Gaussian mechanism it amounts to
Effective = Callable[[float], float] | None


class Ledger(NamedTuple):
  """What a run promises, and what each of its rounds spends."""

  unit: str
  epsilon: float      # the budget
  delta: float
  adjacency: str
  accountant: str
  sampling: str       # in words
  noise: float        # multiplier of the noise
  clip: float
  # (round from 0, sites of the cohort i[C] and the steps each takes i[C]; None = all as planned)
  # -> rows of every site that spends anything
  rows: Callable[..., Rows]
  leaves: Mapping[str, str]   # what of a round leaves a site, and how; see `leaving.py`
  tag: int                    # see `noise_tag`
  seeded: bool = False        # noise and draws are made of config.seed

  @property
  def lower(self) -> bool:
    """Whether units are smaller than sites, so that every site has an epsilon of its own."""
    return self.unit != SITE


def noise_tag(values: Mapping[str, Any], private: Private | None = None) -> int:
  """A number of 32 bits of all that noise is scaled by, which is folded into its keys.

  Two runs of one seed that differ in their noise must not have the same numbers in it: from both
  together they could be taken off again. A run that goes on with more rounds and the same noise is
  one run, and ends as if it had had them at once.
  """
  keys = sorted(key for key in values if key.startswith('privacy.'))
  return zlib.crc32(repr(([values[key] for key in keys], private)).encode())


def is_private(values: Mapping[str, Any]) -> bool:
  """Whether a run trains with a unit of privacy."""
  return bool(values['privacy.unit']) and values['fed.train']


def planned_privacy(
  values: Mapping[str, Any], sizes: np.ndarray, plan: Schedule, effective: Effective = None
) -> Private | None:
  """The clip, noise and denominator of a run; None where nothing is private.

  The noise is the one of the configuration, or the least with which all planned rounds of every
  site stay within the budget.

  Args:
    values: the flat configuration.
    sizes: f32[S] n_k.
    plan: of all rounds.
    effective: (noise multiplier that is asked for) -> that of the Gaussian mechanism it amounts to,
      where the noise is not Gaussian; None = the same.

  Raises:
    InputError: dp-accounting is not installed, no noise keeps the budget, or the first round alone
      overspends it.
  """
  if not is_private(values):
    return None
  accounting.dp_accounting_module()
  number_of, own = len(sizes), effective or (lambda noise: noise)
  noise = values['privacy.noise']
  if not noise:
    noise = accounting.calibrated(
      [lambda noise, rows=rows: priced(rows, own(noise))
       for rows in planned_rows(values, plan, number_of).values()],
      values['privacy.epsilon'], values['privacy.delta'], values['privacy.accountant'])
  expected = values['fed.cohort_size'] or number_of
  private = Private(
    float(values['privacy.clip']), float(noise),
    float(expected if values['privacy.unit'] == SITE else plan.batch_size),
    values['privacy.clipping'])
  _check_first(values, plan, number_of, own(private.noise))
  return private


def _check_mechanism(values: Mapping[str, Any], plan: Schedule, parts: Method) -> None:
  """Raises InputError where a unit is asked for and nothing of the run adds the noise for it."""
  unit = values['privacy.unit']
  if unit == SITE and 'noise' not in parts.aggregator.gives or (
      unit != SITE and getattr(plan, 'units', None) is None):
    raise InputError(
      f'config.privacy.unit={unit!r}: config.fed.learner={values["fed.learner"]!r} with preset '
      f'{values["fed.preset"]!r} has no mechanism for it; use another unit')


def _check_first(
  values: Mapping[str, Any], plan: Schedule, sites: int, noise: float
) -> None:
  """Raises InputError where not even the first round that spends anything can be paid."""
  budget, delta, by = (
    values[f'privacy.{key}'] for key in ('epsilon', 'delta', 'accountant'))
  rounds = (planned_round(values, plan, sites, number) for number in range(len(plan.plan)))
  for site, rows in next(filter(None, rounds), {}).items():
    own = priced(rows, noise)
    if not accounting.within(own, budget, delta, by):
      raise InputError(
        f'config.privacy.epsilon={budget}: the first round alone spends '
        f'{accounting.epsilon(own, delta, by):.3g} of {plan.sites[site].name} at '
        f'config.privacy.noise={noise:.3g}; use 0 for as much noise as the budget asks for, or '
        'fewer local steps')


def make_ledger(
  values: Mapping[str, Any], private: Private | None, plan: Schedule, parts: Method,
  effective: Effective = None,
) -> Ledger | None:
  """The ledger of a run; None where nothing is private.

  Args:
    values: the flat configuration.
    private: of `planned_privacy`.
    plan: of all rounds.
    parts: of the method.
    effective: see `planned_privacy`.

  Raises:
    InputError: nothing of the run adds the noise for the unit, or a site has so many units that
      delta would allow to publish one of them.
  """
  if private is None:
    return None
  _check_mechanism(values, plan, parts)
  noise = effective(private.noise) if effective else private.noise
  sites = len(plan.weights)

  def rows(number, cohort=None, steps=None):
    return {
      plan.sites[site].name: priced(own, noise)
      for site, own in planned_round(values, plan, sites, number, cohort, steps).items()}

  _check_delta(values, plan, rows)
  return Ledger(
    values['privacy.unit'], float(values['privacy.epsilon']), float(values['privacy.delta']),
    values['privacy.adjacency'],
    values['privacy.accountant'], _sampling(values), private.noise, private.clip, rows,
    leaves_as(values), noise_tag(values, private), values['privacy.noise_from_seed'])


def _check_delta(
  values: Mapping[str, Any], plan: Schedule, rows: Callable[[int], Rows]
) -> None:
  """Raises InputError where a site that is in any of the planned rounds has too many units."""
  unit, delta = values['privacy.unit'], values['privacy.delta']
  units: dict[str, int] = {'the federation': len(plan.sites)} if unit == SITE else {}
  for number in () if unit == SITE else range(len(plan.plan)):
    for name, own in rows(number).items():
      units[name] = max([units.get(name, 0), *(row.units for row in own)])
  for name, count in units.items():
    if delta * count >= 1:
      raise InputError(
        f'config.privacy.delta={delta}: {name} has {count} units ({unit}), and one of them may be '
        f'published whole at such a delta; less than {1 / count:.3g} is allowed, far less is usual')


def _sampling(values: Mapping[str, Any]) -> str:
  if values['privacy.mechanism'] == 'banded':
    return f'none; noise correlated over {values["privacy.bands"]} rounds'
  if values['privacy.unit'] == SITE:
    return 'none counted; a site spends in every round that it takes part in'
  return f'Poisson, {values["fed.batch_size"]} units a step on average'


def round_rows(ledger: Ledger, number: int, turn: Participation) -> Rows:
  """What round `number` (from 0) spends of each site, with those that are absent or late."""
  return ledger.rows(number, turn.cohort.sites, turn.steps)


def as_line(rows: Rows) -> dict[str, list[list]]:
  """Rows as JSON values, for a round's line."""
  return {name: [list(row) for row in own] for name, own in rows.items()}


def spent(lines: Sequence[Mapping[str, Any]], more: Rows | None = None) -> Rows:
  """The rows of all rounds so far, and of `more`, by site."""
  total: Rows = {}
  for found in [*(line.get(KEY) or {} for line in lines), as_line(more or {})]:
    for name, rows in found.items():
      total.setdefault(name, []).extend(Spending(*row) for row in rows)
  return {name: merged(rows) for name, rows in total.items()}


def overspends(ledger: Ledger, lines: Sequence[Mapping], number: int, turn: Participation) -> str:
  """Why round `number` (from 0) may not be computed: a site whose budget it exceeds; '' = it may.

  The same for every process of a run, since rows follow from sizes.
  """
  rows = round_rows(ledger, number, turn)
  for name, own in spent(lines, rows).items():
    if name in rows and not accounting.within(
        own, ledger.epsilon, ledger.delta, ledger.accountant):
      return name
  return ''


def is_done(summary: Mapping[str, Any], rounds: int) -> bool:
  """Whether a finished run has as many rounds as are asked for, or as its budget allows."""
  return rounds == (summary.get(KEY) or {}).get('planned_rounds', summary['rounds'])


def stop_sentence(ledger: Ledger, site: str, number: int, planned: int) -> str:
  """What is said where round `number` (from 0) is not computed."""
  return (
    f'stopped after {number} of {planned} rounds: with the next one {site} would have spent more '
    f'than its privacy budget of epsilon {ledger.epsilon:g} (unit: {ledger.unit}); the adapter is '
    'kept as it is')


def entry(ledger: Ledger | None, lines: Sequence[Mapping], planned: int) -> dict | None:
  """summary['privacy']: what was spent, of what, and by whose count; None where nothing is private.

  Args:
    ledger: of the run.
    lines: of its rounds.
    planned: rounds that it was asked for.
  """
  if ledger is None:
    return None
  sites = {
    name: accounting.epsilon(rows, ledger.delta, ledger.accountant)
    for name, rows in spent(lines).items()}
  return {
    'unit': ledger.unit, 'epsilon': max(sites.values(), default=0.0), 'budget': ledger.epsilon,
    'delta': ledger.delta, 'adjacency': ledger.adjacency, 'sampling': ledger.sampling,
    'accountant': accounting.accountant_name(ledger.accountant), 'noise': ledger.noise,
    'clip': ledger.clip, 'noise_from_seed': ledger.seeded, 'sites': sites,
    'rounds': len(lines), 'planned_rounds': planned, 'leaves': dict(ledger.leaves)}

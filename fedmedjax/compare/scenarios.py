"""Scenarios of a study (the flag --settings): the runs that a comparison consists of.

in_domain       every regime on config.data.sites, tested there and on config.data.external
leave_one_out   every regime once for each site, trained on the others and tested on it
scaling         every regime for S sites dealt out of the pooled notes, with equal steps in all
new_site        a site that took no part and has few notes: the federated adapter as it is, the same
                fine-tuned on n of its sentences, and an adapter trained on these alone

A scenario is a function from a `Study` to its parts. Parts differ in their configurations only. The
new site's runs start from the adapters that the in-domain runs have written.
"""

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedmedjax.compare.rows import Row, Study, leaves_adapter, regime_row, taking_part
from fedmedjax.experiment.config import leaves
from fedmedjax.experiment.methods import num_sites
from fedmedjax.types import InputError

# The row of the adapter that is trained on the new site's sentences alone.
LOCAL = 'local only'
# Notes that stay at the site that they came from.
_NOT_DEALT_OUT = {
  'data.partition.kind': '', 'data.partition.sizes': (), 'data.partition.corrupted': 0.0,
  'data.partition.corrupted_sites': (), 'data.partition.missing': 0.0,
  'data.partition.missing_sites': ()}


class Part(NamedTuple):
  """Runs that are tested on the same notes and share their data."""

  scenario: str         # a key of SCENARIOS
  label: str            # the site left out, the number of sites or of sentences; '' = none
  seed: int
  rows: dict[str, Row]  # by name in the tables
  warnings: tuple[str, ...] = ()


def _part(
  study: Study, scenario: str, label: str, folder: Path, changes: dict[str, Any]
) -> Part:
  """One part: all regimes on one configuration, and no more sites a round than the part has."""
  sites = num_sites(leaves(study.config.to_dict()) | changes)
  asked, warnings = study.config.fed.cohort_size, ()
  if changes and asked > sites:
    changes = changes | {'fed.cohort_size': sites}
    warnings = (
      f'{scenario} {label}: config.fed.cohort_size={asked} is cut to the {sites} sites that this '
      'part has',)
  rows: dict[str, Row] = {}
  for regime in study.regimes:
    name, row = regime_row(study, regime, folder, changes)
    if name in rows:
      raise InputError(
        f'--regimes={",".join(study.regimes)}: {regime!r} is the second called {name!r}; different '
        'names are allowed')
    rows[name] = row
  return Part(scenario, label, study.config.seed, rows, warnings)


def in_domain(study: Study) -> list[Part]:
  """One part: the sites of config.data.sites."""
  return [_part(study, 'in_domain', '', study.folder, {})]


def leave_one_out(study: Study) -> list[Part]:
  """A part for each site, which trains on the other sites and is tested on this one.

  Raises:
    InputError: fewer than two sites, sites dealt out of pooled notes, or keys with an entry for
      every site.
  """
  data = study.config.data
  if len(data.sites) < 2 or data.partition.kind:
    raise InputError(
      f'--settings=leave_one_out: config.data.sites={tuple(data.sites)!r} and '
      f'config.data.partition.kind={data.partition.kind!r}: two sites or more, not dealt out, are '
      'allowed')
  if study.config.fed.ranks or data.site_tasks:
    raise InputError(
      '--settings=leave_one_out: config.fed.ranks and config.data.site_tasks have an entry for '
      'every site, and one site is left out; () is allowed')
  return [
    _part(study, 'leave_one_out', site, study.folder / 'leave_one_out' / site, {
      'data.sites': tuple(other for other in data.sites if other != site),
      'data.external': (site,)})
    for site in data.sites]


def scaling(study: Study) -> list[Part]:
  """A part for each number of sites, dealt out of the pooled notes.

  The sites of a round together take as many local steps as the configuration's own sites would.

  Raises:
    InputError: the number of steps depends on epochs, a number of sites exceeds it, or sites have
      sizes of their own.
  """
  config = study.config
  if not (config.fed.local_steps or config.fed.round_steps):
    raise InputError(
      '--settings=scaling: config.fed.local_steps=0: a number >= 1 is needed, so that all numbers '
      'of sites take equal steps')
  dealt = config.data.partition
  if dealt.sizes:
    raise InputError(
      f'--settings=scaling: config.data.partition.sizes={dealt.sizes}: has an entry for each site, '
      'and their number varies; () is allowed')
  total = config.fed.round_steps or config.fed.local_steps * taking_part(config)
  if any(size < 1 or size > total for size in study.scaling):
    raise InputError(
      f'--sizes={",".join(map(str, study.scaling))}: numbers of sites from 1 to the {total} local '
      'steps of a round are allowed')
  return [
    _part(study, 'scaling', str(size), study.folder / 'scaling' / f'{size}_sites', {
      'data.partition.kind': dealt.kind or 'iid', 'data.partition.sites': size,
      'fed.round_steps': total, 'fed.ranks': (), 'data.site_tasks': ()})
    for size in study.scaling]


def new_site(study: Study) -> list[Part]:
  """The in-domain part of all regimes that leave one adapter, then a part for each n sentences.

  Fine-tuning takes `study.epochs` epochs over the n sentences, but at most as many steps as a site
  of the federation in all rounds, and just as many for 'all'. All rows of a part take equal steps.

  Raises:
    InputError: there is no new site, it trains in the federation, or no regime leaves an adapter
      that it can start from.
  """
  config, name = study.config, study.new_site
  if not name or name in config.data.sites:
    raise InputError(
      f'--new_site={name!r}: the name of a site with training notes that is none of '
      f'config.data.sites={tuple(config.data.sites)!r} is needed')
  if not (config.fed.local_steps or config.fed.round_steps):
    raise InputError(
      '--settings=new_site: config.fed.local_steps=0: a number >= 1 is needed, for the new site '
      'takes no more steps than a site of the federation')
  federation, = in_domain(study._replace(
    regimes=tuple(regime for regime in study.regimes if leaves_adapter(config, regime))))
  if not federation.rows:
    raise InputError(
      f'--regimes={",".join(study.regimes)}: none leaves one adapter of config.lora, from which a '
      'new site could start')
  each = config.fed.round_steps // taking_part(config) or config.fed.local_steps
  most, batch = config.fed.rounds * each, config.fed.batch_size
  parts = [federation]
  for number in study.sentences:
    label = 'all' if number < 0 else str(number)
    steps = most if number < 0 else min(most, math.ceil(study.epochs * number / batch))
    changes = {
      'data.sites': (name,), 'data.external': (), 'data.max_train_sentences': max(number, 0),
      'data.validation_examples': 0, 'data.server_validation': '', 'data.site_tasks': (),
      **_NOT_DEALT_OUT,
      'fed.rounds': 1, 'fed.local_steps': max(steps, 1), 'fed.round_steps': 0, 'fed.ranks': (),
      'fed.cohort_size': 0,
      'simulation.failure': 0.0, 'simulation.deadline': 0.0, 'eval.cross_site': False}
    if not number:
      changes['data.shots'] = 0  # there is no sentence that could be shown
    rows = {}
    for arm in (LOCAL, *federation.rows):
      start = '' if arm == LOCAL else str(federation.rows[arm].folder / 'adapter')
      folder = study.folder / 'new_site' / f'{label}_sentences'
      _, row = regime_row(
        study, 'single_site' if number else 'zero_shot', folder, changes | {'lora.start': start})
      rows[arm] = row._replace(folder=folder / arm.replace(' ', '_'))
    parts.append(Part('new_site', label, config.seed, rows))
  return parts


# Value of --settings -> builder of the parts.
SCENARIOS: dict[str, Callable[[Study], list[Part]]] = {
  'in_domain': in_domain, 'leave_one_out': leave_one_out, 'scaling': scaling, 'new_site': new_site}


def parts(study: Study, scenarios: Sequence[str], seeds: Sequence[int]) -> list[Part]:
  """All parts of the scenarios and seeds in the order in which they run, without repetition.

  Runs of config.seed are in WORKDIR/REGIME and WORKDIR/SCENARIO/..., those of another seed in
  WORKDIR/seed_SEED/..., so that seeds can be added later.

  Raises:
    InputError: as the scenarios.
  """
  planned, known = [], set()
  for seed in seeds:
    own = study
    if seed != study.config.seed:
      config = copy.deepcopy(study.config)
      config.seed = seed
      own = study._replace(
        config=config, folder=study.folder / f'seed_{seed}',
        overrides={k: v for k, v in study.overrides.items() if k != 'seed'})
    # In the order of SCENARIOS: both in_domain and new_site have an in-domain part, and the first,
    # with all regimes, is kept.
    for build in (build for name, build in SCENARIOS.items() if name in scenarios):
      for part in build(own):
        if (part.scenario, part.label, seed) not in known:
          known.add((part.scenario, part.label, seed))
          planned.append(part)
  return planned

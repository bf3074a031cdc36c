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
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fedmedjax.compare import api_run
from fedmedjax.eval.endpoint import endpoint_from
from fedmedjax.experiment.command_line import choose_preset
from fedmedjax.experiment.config import leaves, validate
from fedmedjax.experiment.defaults import PRESETS, get_config
from fedmedjax.experiment.methods import adds_to_base, harmless_keys, num_sites
from fedmedjax.store import files
from fedmedjax.train.run import run
from fedmedjax.types import InputError

# The row of the adapter that is trained on the new site's sentences alone.
LOCAL = 'local only'


class Row(NamedTuple):
  """One run, ready to start: a row of the scenario's table."""

  folder: Path
  config: ConfigDict
  settings: dict[str, Any]  # flat config that the folder belongs to, see files.check_workdir
  harmless: Sequence[str]   # keys of it that may change when the run resumes
  run: Callable[..., dict]  # (config, workdir, reporter, data) -> summary


class Part(NamedTuple):
  """Runs that are tested on the same notes and share their data."""

  scenario: str         # a key of SCENARIOS
  label: str            # the site left out, the number of sites or of sentences; '' = none
  seed: int
  rows: dict[str, Row]  # by name in the tables
  warnings: tuple[str, ...] = ()


class Study(NamedTuple):
  """What the user asked for."""

  config: ConfigDict
  folder: Path
  regimes: tuple[str, ...]
  overrides: dict[str, Any] = {}  # flat keys from the command line, see `regime_config`
  scaling: tuple[int, ...] = (2, 4, 6, 8, 10)        # numbers of sites
  new_site: str = ''                                 # name of the site of the scenario new_site
  sentences: tuple[int, ...] = (0, 10, 50, 100, -1)  # n of the new site; -1 = all
  epochs: int = 5  # over the n sentences, as long as the federation's own steps allow


def regime_row(study: Study, regime: str, folder: Path, changes: dict[str, Any]) -> tuple[str, Row]:
  """A regime's name in the table, and its run.

  Args:
    study: what the user asked for.
    regime: a row of PRESETS, `api:MODEL` or `api`.
    folder: the parent of the run's own folder.
    changes: flat keys that define the part; they take precedence over the command line.

  Raises:
    InputError: the regime is unknown, or the environment does not name an endpoint for it.
  """
  config = copy.deepcopy(study.config)
  config.update_from_flattened_dict(changes)
  overrides = {key: value for key, value in study.overrides.items() if key not in changes}
  kind, colon, model = regime.partition(':')
  if kind == 'api' and bool(colon) == bool(model):
    endpoint = endpoint_from(os.environ, model)
    # Nothing is trained, as in zero-shot.
    chosen = regime_config(config, 'zero_shot', overrides)
    return f'api:{endpoint.model}', Row(
      folder / api_run.folder_name(endpoint.model), chosen, api_run.settings(chosen),
      api_run.HARMLESS, partial(api_run.run_api, endpoint=endpoint))
  if regime not in PRESETS:
    raise InputError(
      f'--regimes: {regime!r} is not one of {", ".join(PRESETS)}, api, api:MODEL')
  chosen = regime_config(config, regime, overrides)
  settings = files.plain(leaves(chosen.to_dict()))
  return regime, Row(folder / regime, chosen, settings, harmless_keys(settings), run)


def regime_config(config: ConfigDict, regime: str, overrides: dict[str, Any]) -> ConfigDict:
  """`config` with a regime's preset; config.eval.zero_shot is False: zero-shot is a regime here.

  Keys that the regime's row of PRESETS names are the row's. Of the other keys, those given on the
  command line take precedence over the defaults of methods.
  """
  chosen = copy.deepcopy(config)
  choose_preset(chosen, regime)
  own = {'fed.preset', *(f'fed.{key}' for key in PRESETS[regime])}
  chosen.update_from_flattened_dict(
    {key: value for key, value in overrides.items() if key not in own})
  chosen.eval.zero_shot = False
  validate(chosen)
  return chosen


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
  return Part(scenario, label, study.config.seed, dict(
    regime_row(study, regime, folder, changes) for regime in study.regimes), warnings)


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
    InputError: the number of steps depends on epochs, or a number of sites exceeds it.
  """
  config = study.config
  if not (config.fed.local_steps or config.fed.round_steps):
    raise InputError(
      '--settings=scaling: config.fed.local_steps=0: a number >= 1 is needed, so that all numbers '
      'of sites take equal steps')
  dealt = config.data.partition

  def taking_part(sites: int) -> int:
    return min(config.fed.cohort_size or sites, sites)

  total = config.fed.round_steps or config.fed.local_steps * taking_part(
    num_sites(leaves(config.to_dict())))
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
  if not config.fed.local_steps:
    raise InputError(
      '--settings=new_site: config.fed.local_steps=0: a number >= 1 is needed, for the new site '
      'takes no more steps than a site of the federation')
  federation, = in_domain(study._replace(regimes=tuple(filter(leaves_adapter, study.regimes))))
  if not federation.rows:
    raise InputError(
      f'--regimes={",".join(study.regimes)}: none leaves one adapter of config.lora, from which a '
      'new site could start')
  most, batch = config.fed.rounds * config.fed.local_steps, config.fed.batch_size
  parts = [federation]
  for number in study.sentences:
    label = 'all' if number < 0 else str(number)
    steps = most if number < 0 else min(most, math.ceil(study.epochs * number / batch))
    changes = {
      'data.sites': (name,), 'data.external': (), 'data.max_train_sentences': max(number, 0),
      'data.validation_examples': 0, 'data.site_tasks': (), 'data.partition.kind': '',
      'fed.rounds': 1, 'fed.local_steps': max(steps, 1), 'fed.round_steps': 0, 'fed.ranks': (),
      'fed.cohort_size': 0,
      'simulation.failure': 0.0, 'simulation.deadline': 0.0, 'eval.cross_site': False}
    rows = {}
    for arm in (LOCAL, *federation.rows):
      start = '' if arm == LOCAL else str(federation.rows[arm].folder / 'adapter')
      folder = study.folder / 'new_site' / f'{label}_sentences'
      _, row = regime_row(
        study, 'single_site' if number else 'zero_shot', folder, changes | {'lora.start': start})
      rows[arm] = row._replace(folder=folder / arm.replace(' ', '_'))
    parts.append(Part('new_site', label, config.seed, rows))
  return parts


def leaves_adapter(regime: str) -> bool:
  """Whether a regime ends with one adapter for all, of config.lora's shape."""
  if regime not in PRESETS:
    return False
  values = leaves(get_config(regime).to_dict())
  return (
    values['fed.train'] and values['fed.learner'] == 'lora'
    and values['fed.sharing'] not in ('nothing', 'only_a') and not adds_to_base(values))


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

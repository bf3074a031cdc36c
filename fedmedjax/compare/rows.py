"""Regimes of a study: each a run that is ready to start, a row of a comparison's table."""

import copy
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
from fedmedjax.experiment.defaults import METHOD_DEFAULTS, PRESETS, get_config
from fedmedjax.experiment.methods import adds_to_base, harmless_keys, method, num_sites
from fedmedjax.experiment.own_parts import is_own, own_parts
from fedmedjax.experiment.traits import traits
from fedmedjax.store import files
from fedmedjax.train.run import run
from fedmedjax.types import InputError

# The baseline centralised with as many steps as one site takes, each on as many examples as the
# sites' steps are together.
DEPTH = 'centralised_depth'


class Row(NamedTuple):
  """One run, ready to start: a row of the scenario's table."""

  folder: Path
  config: ConfigDict
  settings: dict[str, Any]  # flat config that the folder belongs to, see files.check_workdir
  harmless: Sequence[str]   # keys of it that may change when the run resumes
  run: Callable[..., dict]  # (config, workdir, reporter, data) -> summary


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
    regime: as `preset_of`, or DEPTH, or `api:MODEL`, or `api`.
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
    own = folder / api_run.folder_name(endpoint.model)
    api_run.check_cache(chosen, study.folder, own, endpoint.model)
    return f'api:{endpoint.model}', Row(
      own, chosen, api_run.settings(chosen), api_run.HARMLESS,
      partial(api_run.run_api, endpoint=endpoint))
  chosen = regime_config(config, regime, overrides)
  name = DEPTH if regime == DEPTH else chosen.fed.preset
  settings = files.plain(leaves(chosen.to_dict()))
  return name, Row(
    folder / name.replace(':', '_'), chosen, settings, harmless_keys(settings), run)


def site_steps(config: ConfigDict) -> int:
  """The local steps of a site in a round that it takes part in, for the regime DEPTH.

  Raises:
    InputError: they depend on epochs, or are fewer than the sites that they would be dealt out to.
  """
  sites = taking_part(config)
  steps = config.fed.round_steps // sites or config.fed.local_steps
  if steps < sites:
    raise InputError(
      f'--regimes={DEPTH}: a site takes {steps or "a number of epochs"} steps a round; '
      f'config.fed.local_steps >= {sites}, the number of sites of a round, is allowed')
  return steps


def taking_part(config: ConfigDict) -> int:
  """The number of the configuration's sites that a round draws."""
  sites = num_sites(leaves(config.to_dict()))
  return min(config.fed.cohort_size or sites, sites)


def preset_of(config: ConfigDict, regime: str) -> str | dict[str, Any]:
  """The preset that a regime stands for, as `apply_preset` takes it.

  Args:
    config: of the study.
    regime: a row of PRESETS; own:NAME, the row of your own that `config` has chosen; or
      FILE.py:FUNCTION, an aggregator of your own beside FedAvg's other parts, called own:FUNCTION.

  Raises:
    InputError: it is none of these.
  """
  if regime in PRESETS:
    return regime
  if regime.startswith('own:') and regime == config.fed.preset:
    return {'name': regime.removeprefix('own:')} | {
      key: config.fed[key] for key in METHOD_DEFAULTS}
  if is_own(regime) and not regime.startswith('python:'):
    return {'name': regime.rpartition(':')[2], 'aggregator': regime}
  mine = [config.fed.preset] if config.fed.preset.startswith('own:') else []
  raise InputError(
    f'--regimes: {regime!r} is not one of {", ".join([*PRESETS, DEPTH, *mine])}, '
    'FILE.py:FUNCTION, api, '
    'api:MODEL')


def regime_config(config: ConfigDict, regime: str, overrides: dict[str, Any]) -> ConfigDict:
  """`config` with a regime's preset; config.eval.zero_shot is False: zero-shot is a regime here.

  Keys that the regime's row names are the row's. Of the other keys, those given on the command line
  take precedence over the defaults of methods.
  """
  chosen = copy.deepcopy(config)
  if regime == DEPTH:
    regime, sites = 'centralised', taking_part(config)
    chosen.fed.update(
      round_steps=site_steps(config), batch_size=config.fed.batch_size * sites)
    overrides = {key: value for key, value in overrides.items()
                 if key not in ('fed.round_steps', 'fed.batch_size')}
  preset = preset_of(config, regime)
  choose_preset(chosen, preset)
  own = {'fed.preset', *(
    f'fed.{key}' for key in (PRESETS[preset] if isinstance(preset, str) else preset))}
  chosen.update_from_flattened_dict(
    {key: value for key, value in overrides.items() if key not in own})
  chosen.eval.zero_shot = False
  validate(chosen)
  return chosen


def leaves_adapter(config: ConfigDict, regime: str) -> bool:
  """Whether a regime of a study ends with one adapter for all, of config.lora's shape."""
  if regime.partition(':')[0] == 'api':
    return False
  regime = 'centralised' if regime == DEPTH else regime
  chosen, preset = copy.deepcopy(config), preset_of(config, regime)
  choose_preset(chosen, preset)
  values = leaves(get_config(preset).to_dict())
  if not values['fed.train'] or chosen.fed.learner != 'lora' or adds_to_base(values):
    return False
  if values['fed.clusters'] > 1 or values['fed.local_rank']:
    return False
  own = own_parts(values)
  # A sharing is asked what it shares: no factor may stay at its site.
  return {'shared_leaves', 'whole_pairs'} <= traits(values, own, method(values, own)).gives

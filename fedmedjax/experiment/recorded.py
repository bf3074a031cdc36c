"""The configuration of a run, from its folder."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fedmedjax.data.formats.corpora import CORPORA
from fedmedjax.data.synthetic.cohorts import COHORTS
from fedmedjax.experiment import matmul
from fedmedjax.experiment.config import leaves, validate
from fedmedjax.experiment.defaults import get_config
from fedmedjax.store.files import read_json
from fedmedjax.types import InputError


def recorded_config(workdir: Path) -> ConfigDict:
  """What config.json says, checked; keys that the run's version did not have are at their defaults.

  Sites are not spread over devices, whatever the run did.

  Raises:
    InputError: no run's config.json is there, it has a key that this version does not know, a value
      is not allowed (any more), or the notes of a site were given in Python.
  """
  path = workdir / 'config.json'
  if not path.is_file():
    raise InputError(f'--workdir={workdir}: holds no run (config.json)')
  values = read_json(path)
  if 'fed.preset' not in values:
    raise InputError(f'--workdir={workdir}: its config.json is none of a run')
  config = get_config()
  known = leaves(config.to_dict())
  for key in values.keys() - known.keys():
    raise InputError(f'{path}: {key}: this version knows no such key; take the version of the run')
  # As a run multiplied whose version had no such key.
  chosen = {matmul.KEY: matmul.WIDE} | {key: _as_written(value) for key, value in values.items()}
  try:
    config.update_from_flattened_dict(chosen | {'mesh.site': 1})
  except (KeyError, AttributeError, TypeError, ValueError) as error:
    raise InputError(f'{path}: {" ".join(str(error).split())[:300]}') from None
  validate(config)
  folders = {site['name'] for site in config.data.folders}
  server = (config.data.server_validation,) if config.data.server_validation else ()
  for name in (*config.data.sites, *config.data.external, *server):
    if name not in {*COHORTS, *CORPORA, *folders}:
      raise InputError(
        f'{path}: data.sites: the notes of {name!r} were given in Python, and are not in the run')
  return config


def _as_written(value: Any) -> Any:
  """A value of JSON as a configuration has it: lists are tuples there."""
  if isinstance(value, list):
    return tuple(map(_as_written, value))
  return {key: _as_written(one) for key, one in value.items()} if isinstance(value, dict) else value

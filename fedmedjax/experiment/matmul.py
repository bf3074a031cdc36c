"""config.model.matmul: what frozen weights are multiplied in, decided once and kept by a run."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from fedmedjax.runtime import product_trial
from fedmedjax.runtime.processes import ALONE, Processes
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store.files import read_json
from fedmedjax.types import InputError

KEY = 'model.matmul'
AUTO = 'auto'
# What a run keeps. 'float32' leaves operands as config.model.dtype has them.
WIDE, ROUNDED = FORMS = ('float32', 'bfloat16')


def check_matmul(values: Mapping[str, Any]) -> None:
  """Raises InputError where operands are to be rounded to the format that they have anyway."""
  if values[KEY] == ROUNDED and values['model.dtype'] != 'float32':
    raise InputError(
      f"config.{KEY}='bfloat16': with config.model.dtype={values['model.dtype']!r} operands are "
      f'rounded as they are; use {AUTO!r}')


def settled(
  config: ConfigDict, reporter: Reporter, folders: Iterable[Path] = (), loaded: str | None = None,
  processes: Processes = ALONE,
) -> ConfigDict:
  """The configuration with 'float32' or 'bfloat16' in place of 'auto'; a copy where it changes.

  Args:
    config: validated.
    reporter: is told what was decided.
    folders: of runs that may be there already: what one of them began with is taken.
    loaded: what a base that is there already was loaded for, where that is known.
    processes: of the run; process 0 decides for all.

  Raises:
    InputError: a run's config.json cannot be read, or the base was loaded for another form.
  """
  value = config.model.matmul
  if value == AUTO:
    value = WIDE if config.fed.learner != 'lora' else processes.of_first(KEY, lambda: (
      recorded(folders) or loaded or decided(AUTO, config.model.dtype, reporter)))
    config = config.copy_and_resolve_references()
    config.model.matmul = value
  if loaded not in (None, value):
    raise InputError(
      f'data=...: loaded with config.{KEY}={loaded!r}, and this run has {value!r}; load them with '
      'that, or leave out data=')
  return config


def recorded(folders: Iterable[Path]) -> str | None:
  """What the first run that is there keeps in its config.json; None without any."""
  for folder in folders:
    path = folder / 'config.json'
    value = read_json(path).get(KEY) if path.exists() else None
    if value in FORMS:
      return value
  return None


def decided(value: str, dtype: str, reporter: Reporter) -> str:
  """`value`, or where it is 'auto' what suits this machine. A program of several processes has to
  call this in the first of them, and give the others its answer.

  Args:
    value: of config.model.matmul.
    dtype: of config.model.dtype.
    reporter: is told of a trial's outcome.
  """
  if value != AUTO:
    return value
  # Accelerators have units for each format, and choose by config.model.dtype.
  if dtype != 'float32' or jax.default_backend() != 'cpu' or product_trial.lacks_units():
    return WIDE
  gain = product_trial.bfloat16_gain()
  form = ROUNDED if gain >= product_trial.LEAST else WIDE
  reporter.say(
    f'{KEY}: {form} products (this CPU multiplies bfloat16 {gain:.2g} times as fast as float32)')
  return form

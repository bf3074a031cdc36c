"""Command line to a checked ConfigDict; every mistake is a one-line InputError."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from fedmedjax.experiment.config_file import PACKAGE, load_config_file, shipped_names, unknown_key
from fedmedjax.experiment.defaults import apply_preset, get_config
from fedmedjax.runtime.cli import asks_help, help_text, indented
from fedmedjax.types import InputError

# What --help says of the commonest keys; their values there are the defaults.
COMMON_KEYS = {
  'fed.preset': 'Method, a row of the table of presets; FILE:PRESET is the same.',
  'fed.rounds': 'Rounds of federated training.',
  'fed.local_steps': 'Optimiser steps of each site in a round; 0 = fed.local_epochs says.',
  'fed.batch_size': 'Examples of a local step.',
  'fed.cohort_size': 'Sites that are drawn for a round; 0 = all.',
  'optim.learning_rate': "Peak learning rate of the sites' AdamW.",
  'lora.rank': 'Rank of every adapted matrix.',
  'model.path': "GGUF file, folder or Hugging Face id of the base; '' = SmolLM2-135M.",
  'data.sites': 'Sites that train: synthetic_*, public corpora, names of data.folders.',
  'data.folders': "Your notes: (dict(name='a', path='notes', format='brat', mapping='schema'),).",
  'data.tasks': "('ner',) entities, ('re',) modifiers of a marked entity, ('ner', 're') both.",
  'data.max_train_notes': 'Training notes used of each site; 0 = all.',
  'eval.max_examples': 'Test sentences of each site; 0 = all.',
  'seed': 'Seed of adapters, data order and, unless data.seed is set, of drawn notes.',
}


def parse(
  argv: Sequence[str], define: Callable[[flags.FlagValues], None], check: bool = True
) -> tuple[ConfigDict, flags.FlagValues, dict[str, Any]]:
  """Command line -> (config, flags, the flat config keys that it names).

  Args:
    argv: as sys.argv.
    define: declares the program's other flags on the given FlagValues; the docstring of its module
      is what --help begins with.
    check: validate the values; False when the caller changes some and validates then.

  Raises:
    InputError: an unknown key or flag (with a suggestion), a value of the wrong type, a config
      file that is missing or fails, or a value that is not allowed.
  """
  values = flags.FlagValues()
  define(values)
  if asks_help(argv):
    print(help_text(define, values, _config_help()))
    raise SystemExit(0)
  try:
    place, others = _without_config(_with_files(argv))
    if place:
      config_flags.DEFINE_config_dict(
        'config', load_config_file(place), flag_values=values, sys_argv=others)
    rest = values(others)
  except InputError:
    raise
  except Exception as error:  # flags and values raise many kinds
    raise InputError(_one_line(error)) from None
  if len(rest) > 1:
    raise InputError(f'{rest[1]!r}: not a flag; flags look like --workdir=runs/x')
  if not place:
    raise InputError(
      f'--config is missing: name a file, or a shipped one as in --config={PACKAGE}:quickstart')
  config = values.config
  overrides = config_flags.get_override_values(values['config'])
  if 'fed.preset' in overrides:
    choose_preset(config, overrides['fed.preset'])
    # What the command line names itself goes before the preset's row.
    config.update_from_flattened_dict(overrides)
  if check:
    # It knows every part of a study, whose libraries take seconds to import.
    from fedmedjax.experiment.config import validate
    validate(config)
  return config, values, overrides


def _with_files(argv: Sequence[str]) -> list[str]:
  """A command line with the flags of its --flagfile, which may begin with a byte-order mark."""
  words = flags.FlagValues().read_flags_from_files(list(argv), force_gnu=False)
  return [word.removeprefix('\ufeff') for word in words
          if not word.startswith(('\ufeff#', '\ufeff//')) and word != '\ufeff']


def config_arguments(argv: Sequence[str], overrides: dict[str, Any]) -> list[str]:
  """The words of a command line that make its configuration, each with its value in it.

  Args:
    argv: of `parse`.
    overrides: what `parse` found there.
  """
  place, _ = _without_config(_with_files(argv))
  return [f'--config={place}', *(f'--config.{key}={value}' for key, value in overrides.items())]


def choose_preset(config: ConfigDict, preset: str) -> None:
  """Applies a row of PRESETS; raises InputError when there is none of that name."""
  try:
    apply_preset(config, preset)
  except ValueError as error:
    raise InputError(f'config.fed.preset: {error}') from None


def _without_config(argv: Sequence[str]) -> tuple[str, list[str]]:
  """(the last value of --config, '' = none; all other arguments)."""
  place, others, rest = '', [], list(argv)
  while rest:
    word = rest.pop(0)
    if word == '--':
      return place, [*others, word, *rest]
    found = re.fullmatch(r'--?config(?:=(.*))?', word, re.DOTALL)
    if not found:
      others.append(word)
    elif found[1] is not None or rest:
      place = rest.pop(0) if found[1] is None else found[1]
  return place, others


def _config_help() -> str:
  """What --help says of --config and of the keys."""
  config = get_config()
  keys = []
  for key, meaning in COMMON_KEYS.items():
    value = config
    for part in key.split('.'):
      value = value[part]
    shown = repr(value).replace(' ', '')
    keys += [f'  --config.{key}={shown}', indented(meaning)]
  return '\n'.join([
    '  --config=FILE[:PRESET]', indented(
      f'A file whose get_config returns the configuration, or {PACKAGE}:NAME[:PRESET], NAME one '
      f'of {", ".join(shipped_names())}.'), '',
    'The commonest keys of the configuration, with the values that they have by default:',
    *keys, '',
    'such as --config.fed.rounds=5 --config.data.tasks="(\'ner\',\'re\')". Every key and preset is',
    'explained in fedmedjax/experiment: defaults.py, eval_defaults.py, federation_defaults.py,',
    'privacy_defaults.py, presets.py.'])


def _one_line(error: Exception) -> str:
  text = str(error)
  if unknown := unknown_key(error):
    return unknown
  if isinstance(error, KeyError | AttributeError) and 'has no attribute' not in text:
    key = text.splitlines()[0].strip('\\"\'')
    return f'config key {key!r} is unknown; fedmedjax/experiment/defaults.py lists all keys'
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  return f'{lines[0].split(": Error")[0]}: {lines[-1]}' if len(lines) > 1 else lines[0]

"""The fingerprint of a run's inputs: a run resumes only with the notes and model it began with."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fedmedjax.data.schema import FILE as SCHEMA
from fedmedjax.data.site import SiteData
from fedmedjax.data.wording import FILE as PROMPT
from fedmedjax.experiment.own_parts import METRIC, OwnPart
from fedmedjax.experiment.types import Data
from fedmedjax.model.files.load import model_files, model_path
from fedmedjax.store.files import (
  CHECKSUM_DIGITS,
  file_checksums,
  read_json,
  read_lines,
  write_json,
  write_text,
)
from fedmedjax.types import InputError, Schema

FILE = 'inputs.json'
STARTING = 'starting adapter'
_VALIDATION = 'its validation notes'
_PROMPTS = 'its prompts'
# The group of a metric of the user's own, which may change until there are scores by it.
_METRIC = 'own metric'


def fingerprint(
  config: ConfigDict, data: Data, own: Mapping[str, OwnPart]
) -> dict[str, dict[str, str]]:
  """{'notes of site NAME': {document: checksum}, ..., 'model': {file: checksum}, ...}.

  Checksums of notes are of their examples after reading, splitting and tokenising, so that the same
  notes may move to other files. Those of the model, and of the adapter that training starts from,
  are of their files. Of several processes each gives those of its own sites' notes, and all must
  have the same of everything else.
  """
  sites, processes = (*data.sites, *data.tested, *data.external, *data.server), (
    data.reading.processes)
  common = {'model': _model(config, data)} | starting_adapter(config) | own_checksums(own) | (
    schema_checksum(data.schema))
  processes.same('checksums of inputs', {
    f'{group}: {name}': checksum for group, files in common.items()
    for name, checksum in files.items()})
  notes = processes.merged('checksums of notes', {
    site.name: _notes(site) for site in sites if data.reading.here(site)})
  return {f'notes of site {site.name}': notes[site.name] for site in sites} | common


def _model(config: ConfigDict, data: Data) -> dict[str, str]:
  """Checksums of the model's files; of a tagger, which has none, those of its frozen weights."""
  if config.fed.learner == 'tagger':
    return {name: hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()[:CHECKSUM_DIGITS]
            for name, leaf in data.base.params.items()}
  path = config.bert.path if config.fed.learner == 'bert' else model_path(config.model.path)
  return file_checksums(*model_files(path))


def starting_adapter(config: ConfigDict) -> dict[str, dict[str, str]]:
  """The fingerprint's entry of the adapter that training starts from; {} when there is none.

  Raises:
    InputError: config.lora.start cannot be read.
  """
  if config.fed.learner != 'lora' or not config.lora.start:
    return {}
  try:
    return {STARTING: file_checksums(Path(config.lora.start))}
  except OSError as error:
    raise InputError(f'config.lora.start={config.lora.start!r}: {error.strerror}') from None


def own_checksums(own: Mapping[str, OwnPart]) -> dict[str, dict[str, str]]:
  """The part of the fingerprint of the user's own parts, {} without any."""
  groups = defaultdict(dict)
  for key, part in sorted(own.items()):
    group = _METRIC if key == METRIC else 'own parts'
    groups[group][f'config.{key}={part.name}'] = part.checksum
  return dict(groups)


def write_own_parts(workdir: Path, own: Mapping[str, OwnPart]) -> None:
  """Writes the text of each part to WORKDIR/own_parts/KEY.py."""
  for key, part in own.items():
    write_text(workdir / 'own_parts' / f'{key}.py', part.text)


def schema_checksum(schema: Schema) -> dict[str, dict[str, str]]:
  """The part of the fingerprint of the study's own schema and words, {} for the usual ones."""
  return {group: {'its text': _checksum([text])} for group, text in (
    ('schema', schema.text), ('wording of prompts', schema.words)) if text}


def write_schema(workdir: Path, schema: Schema) -> None:
  """Writes the texts of the study's own schema and words to WORKDIR/schema.toml and prompt.toml."""
  for name, text in ((SCHEMA, schema.text), (PROMPT, schema.words)):
    if text:
      write_text(workdir / name, text)


def may_mend(workdir: Path, settings: Mapping[str, Any]) -> bool:
  """Whether a run may go on with a changed metric of the user's own, as after a fault in it.

  So it is until there are scores by it: in summary.json, or in rounds that were watched by it.

  Args:
    workdir: folder of the run.
    settings: flat configuration.
  """
  if (workdir / 'summary.json').exists():
    return False
  return bool(settings['eval.metrics']) or not any(
    'validation_f1' in line for line in read_lines(workdir / 'metrics.jsonl'))


def check_inputs(
  workdir: Path, inputs: dict[str, dict[str, str]], mendable: bool = False
) -> None:
  """Writes the fingerprint to WORKDIR/inputs.json, or compares it with the one that is there.

  Args:
    workdir, inputs, mendable: see `compare_inputs`.

  Raises:
    InputError: as `compare_inputs`.
  """
  path = workdir / FILE
  if not path.exists():
    write_json(path, inputs)
  compare_inputs(workdir, inputs, mendable=mendable)
  if mendable and _METRIC in inputs:
    write_json(path, read_json(path) | {_METRIC: inputs[_METRIC]})


def compare_inputs(
  workdir: Path, inputs: dict[str, dict[str, str]], only: Iterable[str] | None = None,
  mendable: bool = False,
) -> None:
  """Compares the fingerprint with that of the run in `workdir`, if there is one.

  Args:
    workdir: folder of the run.
    inputs: from `fingerprint`.
    only: the groups to compare, such as 'model'; None = all.
    mendable: of `may_mend`; then a metric of the user's own is not compared.

  Raises:
    InputError: an input has changed since the run began; the message names it.
  """
  path = workdir / FILE
  recorded = read_json(path) if path.exists() else inputs
  if not all(isinstance(entry, dict) for entry in recorded.values()):
    raise InputError(f'{path}: is no list of inputs; bring back the file')
  groups = set(recorded.keys() | inputs.keys() if only is None else only)
  for group in sorted(groups - {_METRIC} if mendable else groups):
    before, now = recorded.get(group, {}), inputs.get(group, {})
    # Older versions did not record prompts.
    changed = [name for name in sorted(before.keys() | now.keys())
               if before.get(name) != now.get(name)
               and not (name == _PROMPTS and before and name not in before)]
    if changed:
      more = f' and {len(changed) - 1} more' if len(changed) > 1 else ''
      raise InputError(
        f'--workdir={workdir}: {group}: {changed[0]}{more} changed since the run began; bring back '
        'what it began with, or choose another workdir')


def _notes(site: SiteData) -> dict[str, str]:
  documents = defaultdict(list)
  for part in site.tasks:
    for use, examples in (('train', part.solved), ('test', part.test)):
      for example in examples:
        documents[example.document].append(f'{use} {example!r}')
  return {name: _checksum(parts) for name, parts in sorted(documents.items())} | {
    _VALIDATION: _checksum(
      example.tokens.tolist() for part in site.tasks for example in part.validation),
    _PROMPTS: _checksum(
      text for part in site.tasks for text in (part.ask.instruction, *part.ask.shots))}


def _checksum(parts: Iterable[Any]) -> str:
  return hashlib.sha256('\n'.join(map(str, parts)).encode()).hexdigest()[:CHECKSUM_DIGITS]


"""Words of notes in the files of a run: how they are left out, and which files hold them.

docs/files.md has the same list for people.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from fedmedjax.store.files import read_json, read_lines, write_json, write_lines
from fedmedjax.types import InputError

PREDICTIONS = 'predictions'
# Keys of a prediction record that hold words of its note, or may.
_WORDS = ('model_input', 'generated', 'target')
# Keys of a record without words; `predicted` and `gold`, if there, are lists of [start, end, type].
_OFFSETS = {
  'document', 'sentence_start', 'sentence_end', 'task', 'predicted', 'gold', 'main',
  'parse_failed', 'copied', 'dropped', 'output_heading'}
_OUTPUT_HEADING = '\n### Output Text:\n'
# What report.html has around the sentences that it quotes.
_QUOTES = '<details class="excerpts"'

# Of runs, comparisons and descriptions: files and folders that never hold words of notes. Weights
# are no words; what they give away was not measured.
_WORDLESS = {
  'config.json', 'inputs.json', 'sites.json', 'metrics.jsonl', 'ledger.csv', 'compare.json',
  'findings.json', 'summary.json', 'description.json', 'description.svg', 'description.png',
  'schema.toml', 'prompt.toml', 'lock', 'own_parts', 'adapter', 'model', 'checkpoints',
  'tensorboard', 'wandb', 'mlflow', 'trackers.json', 'ablation', 'audit.json', 'results.parquet',
  'results.csv', 'sweep.json', 'sweep.html', 'groups'}
# Of a run and of annotations: files that hold words of notes where prompts show examples
# (config.data.shots), under a key of its own.
SUMMARY, SHOTS = 'summary.json', 'shots'
_SHOWN = 'examples out of notes that prompts show'
# Of a folder that predict has written.
_ANNOTATIONS = 'predict.json'
_WORDLESS_ANNOTATIONS = {
  'skipped.jsonl', 'lock', 'html/index.html',
  # They hold the names of types.
  'brat/annotation.conf', 'label_studio/labelling.xml', 'uima_xmi/TypeSystem.xml'}
# Of a regime api:MODEL.
PROMPTS, ANSWERS = 'prompts.json', 'answers.jsonl'
_OF_ENDPOINTS = {
  PROMPTS: 'questions that an endpoint was asked', ANSWERS: 'answers of an endpoint'}


def sentence(record: Mapping) -> str:
  """The sentence of a prediction record, without the tags around its main entity.

  The tags are found by the main entity's offsets, since the sentence may contain tags of its own.
  """
  text = record['model_input'].removesuffix(record.get('output_heading', _OUTPUT_HEADING))
  if 'main' not in record:
    return text
  start, end, kind = record['main']
  start, end = start - record['sentence_start'], end - record['sentence_start']
  # The markup for a language model, or the markers that a BERT is given.
  for opening, closing in ((f'<span class="{kind}">', '</span>'), (f'@ * {kind} * ', ' @')):
    inner = start + len(opening)
    after = inner + end - start
    if text[start:inner] == opening and text[after:after + len(closing)] == closing:
      return text[:start] + text[inner:after] + text[after + len(closing):]
  return text


def has_sentence(record: Mapping) -> bool:
  """Whether a prediction record was kept with its text."""
  return 'model_input' in record


def kept(records: Iterable[dict], text: bool) -> Iterator[dict]:
  """Prediction records as they are written: with their text, or with `sentence_end` instead."""
  for record in records:
    yield record if text or not has_sentence(record) else {
      key: value for key, value in record.items() if key not in _WORDS} | {
      'sentence_end': record['sentence_start'] + len(sentence(record))}


def take_out(folder: Path) -> None:
  """Rewrites the prediction records of a run's folder that still have their text, and its summary
  where that has examples; takes away the questions that an endpoint was asked, and what writes that
  were stopped have left."""
  for path in (folder / PROMPTS, *folder.glob('*.part'), *(folder / PREDICTIONS).rglob('*.part')):
    path.unlink(missing_ok=True)
  for path in sorted((folder / PREDICTIONS).rglob('*.jsonl')):
    if _records_with_words(path):
      write_lines(path, kept(read_lines(path), text=False))
  if (folder / SUMMARY).exists() and SHOTS in (summary := read_json(folder / SUMMARY)):
    write_json(folder / SUMMARY, {key: summary[key] for key in summary if key != SHOTS})


def files_with_words(folder: Path) -> tuple[list[tuple[Path, str]], int]:
  """([(file below `folder`, why it is said to hold words of notes)], number of files looked at).

  Files that no program here writes are among them, since nobody knows what they hold.

  Args:
    folder: of a run, of a comparison, or of annotations by predict.

  Raises:
    InputError: it is none of these, or a file cannot be read.
  """
  if not folder.is_dir():
    raise InputError(f'--workdir={folder}: the folder of a run is expected, none is there')
  found, count, known = [], 0, False
  for path, rules in _files(folder):
    known = known or rules is not _of_comparison or path.name == 'findings.json'
    count += 1
    if why := rules(path):
      found.append((path, why))
  if not known:
    raise InputError(
      f'--workdir={folder}: holds no run (config.json), no comparison (findings.json) and no '
      f'annotations ({_ANNOTATIONS})')
  return found, count


Rules = Callable[[Path], str]  # (file) -> why it holds words of notes; '' = it holds none


def _files(folder: Path, rules: Rules | None = None) -> Iterator[tuple[Path, Rules]]:
  """The files below a folder, each with the rules of the nearest run or annotations around it."""
  rules = _rules(folder) or rules or _of_comparison
  for path in sorted(folder.iterdir()):
    if path.is_dir() and not path.is_symlink():
      yield from _files(path, rules)
    else:
      yield path, rules


def _rules(folder: Path) -> Rules | None:
  """The rules that begin at a folder, if it is a run's or holds annotations."""
  if (folder / _ANNOTATIONS).exists():
    return lambda path: _of_annotations(path, folder)
  # Models in Hugging Face's format have a config.json, too.
  path = folder / 'config.json'
  if path.is_file() and 'data.sites' in read_json(path):
    return lambda path: _of_run(path, folder)
  return None


def _of_annotations(path: Path, folder: Path) -> str:
  if path == folder / _ANNOTATIONS:
    return _SHOWN if read_json(path).get(SHOTS) else ''
  wordless = path.relative_to(folder).as_posix() in _WORDLESS_ANNOTATIONS
  return '' if wordless or not path.lstat().st_size else 'annotated notes'


def _of_run(path: Path, folder: Path) -> str:
  inside = path.relative_to(folder).parts
  if inside == (SUMMARY,):
    return _SHOWN if read_json(path).get(SHOTS) else ''
  if inside[0] in _WORDLESS:
    return ''
  if inside[0] == PREDICTIONS:
    if inside[1:] == ('counts.json',):
      return ''
    if path.suffix == '.jsonl':
      return 'tested sentences and answers' if _records_with_words(path) else ''
  if len(inside) == 1 and path.name in _OF_ENDPOINTS:
    return _OF_ENDPOINTS[path.name]
  return _of_comparison(path)


def _of_comparison(path: Path) -> str:
  """Of files that stand beside runs, and of all that no rule knows."""
  if path.is_symlink():
    return 'not looked into: a link'
  if path.name in _WORDLESS:
    return ''
  if path.name == 'report.html':
    return 'quoted sentences' if _QUOTES in path.read_text(encoding='utf-8') else ''
  if path.suffix == '.part':
    return 'left by a write that was stopped'
  return 'not looked into: no file that a run writes'


def _records_with_words(path: Path) -> bool:
  """Whether a file of prediction records holds more than offsets; a line that is cut off may."""
  with path.open('rb') as file:
    return any(map(_has_words, file))


def _has_words(line: bytes) -> bool:
  try:
    record = json.loads(line)
    return not (record.keys() <= _OFFSETS and all(
      isinstance(span, list) for key in ('predicted', 'gold') for span in record.get(key, ())))
  except (ValueError, RecursionError, AttributeError, LookupError, TypeError):
    return True


def shown(path: Path) -> str:
  """A path as it can be printed, whatever its bytes are."""
  return os.fsencode(path).decode(errors='backslashreplace')

"""Annotates a folder of notes into a folder of annotations; notes that are done are not redone.

OUTPUT/predict.json       adapter, base and prompts of the annotations; with others it is refused
OUTPUT/annotations.jsonl  one record for each note, with any --format; offsets are in characters
OUTPUT/skipped.jsonl      notes that could not be annotated, and why
OUTPUT/FORMAT/            the annotations in the format asked for: a file a note, in the same
                          sub-folders as the notes, or files for all (label_studio, doccano, tables)
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from fedmedjax.data.sentences import split_sentences
from fedmedjax.data.tasks import Asked
from fedmedjax.experiment import matmul
from fedmedjax.experiment.meshes import make_mesh
from fedmedjax.model.dtypes import DTYPES
from fedmedjax.model.files.convert import Placement
from fedmedjax.model.files.load import load_model, model_files, model_path
from fedmedjax.model.sharding import AXES, base_shardings
from fedmedjax.predict.annotate import Annotator, annotate, make_annotator
from fedmedjax.predict.forms import FORMS
from fedmedjax.predict.inputs import Notes, find_notes
from fedmedjax.predict.records import (
  RECORDS,
  SKIPPED,
  append_record,
  held_document,
  missing_files,
  read_records,
  record_of,
  take_away_joint,
  take_away_other_forms,
  write_files,
  write_joint,
  write_lists,
)
from fedmedjax.predict.trained import Trained
from fedmedjax.runtime.phrases import many
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store.files import check_place, file_checksums, read_json, write_json, write_text
from fedmedjax.store.lock import check_free, locked
from fedmedjax.types import InputError, Schema

_SETTINGS = 'predict.json'
_BEFORE = {matmul.KEY: matmul.WIDE}  # what it lacks where an older version wrote it
_LISTED = 8          # most names in a printed line
_SHOWN = 20          # most spans that are printed


def annotate_folder(
  trained: Trained, source: Path, output: Path, form: str, reporter: Reporter,
  text_column: str = '', id_column: str = '',
) -> None:
  """Annotates all notes below `source` that are not yet annotated in `output`.

  Args:
    trained: the adapter and its prompts.
    source: of notes, see `inputs.find_notes`.
    output: a new folder, or that of an earlier call with the same adapter, base and prompts.
    form: a key of FORMS; notes annotated in another format are converted, not decoded again.
    reporter: shows progress and prints the outcome.
    text_column, id_column: of a source of rows, see `inputs.find_notes`.

  Raises:
    InputError: bad folders, adapter or base, before anything is decoded.
    RuntimeError: none of the notes could be read.
  """
  if form not in FORMS:
    raise InputError(f'--format={form}: one of {", ".join(FORMS)} is allowed')
  if FORMS[form].needs:
    FORMS[form].needs(f'--format={form}')
  notes = find_notes(source, text_column, id_column)
  _check_folders(source, output)
  trained = _settled(trained, output, reporter)
  with reporter.live():
    with reporter.task('checksums'):
      settings = _settings(trained)
    _check_settings(output, settings)
    check_free(output)
    plan = _plan(notes, read_records(output), reporter)
    # Loaded before anything is written, since base, adapter and prompts may not fit together.
    annotator = _load(trained, reporter) if plan.left else None
    output.mkdir(parents=True, exist_ok=True)
    with locked(output, reporter.warn):
      for line in trained.told:
        reporter.say(line)
      write_json(output / _SETTINGS, settings | {
        'adapter_folder': str(trained.adapter), 'model.path': trained.settings['model.path']})
      records = _carried_out(
        annotator, plan, notes, output, form, settings['asked'], trained.schema, reporter)
  # Words of notes are shown to who sits there, and never end up in a file of what was printed.
  if reporter.console.is_terminal and (table := _span_table(records)):
    reporter.say(table)
  for line in _outcome(records, plan, output, form):
    reporter.say(line)
  if not records:
    raise RuntimeError(
      f'no note could be read, {len(notes.skipped)} skipped, see {output / SKIPPED}')


class _Plan(NamedTuple):
  """Which notes are annotated already and which are to be annotated, by file."""

  kept: dict[str, dict]    # {file: record} of notes that have not changed
  others: dict[str, dict]  # {file: record} of notes that no longer exist or cannot be read now
  left: list[str]          # files of the notes to annotate
  sentences: int           # number of sentences in them
  skipped: dict[str, str]  # {file: why}; more are added while notes are read


def _check_folders(source: Path, output: Path) -> None:
  """Raises InputError when the folders overlap, or the output contains other files."""
  check_place('--output', output)
  first, second = source.resolve(), output.resolve()
  if first.is_relative_to(second) or second.is_relative_to(first):
    raise InputError(
      f'--output={output}: a folder outside of --input={source}, and not around it, is allowed')
  existing = {path.name for path in output.iterdir()} if output.exists() else set()
  if _SETTINGS not in existing and existing - {'lock', f'{_SETTINGS}.part'}:
    raise InputError(f'--output={output}: is not empty and holds no annotations ({_SETTINGS})')


def _settled(trained: Trained, output: Path, reporter: Reporter) -> Trained:
  """The same with a value of model.matmul that is not 'auto': that of the earlier call, if any."""
  value, path = trained.settings[matmul.KEY], output / _SETTINGS
  if value == matmul.AUTO and path.exists():
    value = (_BEFORE | read_json(path))[matmul.KEY]
  value = matmul.decided(value, trained.settings['model.dtype'], reporter)
  return trained._replace(settings=trained.settings | {matmul.KEY: value})


def _settings(trained: Trained) -> dict[str, Any]:
  """The contents of predict.json: everything that an annotation depends on."""
  chosen = trained.settings
  try:
    base = model_files(model_path(chosen['model.path']))
  except InputError as error:
    raise InputError(f'{error} (--base names another place)') from None
  adapter = file_checksums(trained.adapter)
  return {
    'adapter': {name: adapter[name] for name in adapter if name.startswith('adapter_')},
    'base': file_checksums(*base),
    **{key: chosen[key]
       for key in ('model.dtype', matmul.KEY, 'model.quantization', 'data.style',
                   'eval.max_new_ratio')},
    **({'data.chat': True} if chosen['data.chat'] else {}),
    'prompts': {ask.task: ask.instruction for ask in trained.asks},
    **({'shots': {ask.task: [list(shot) for shot in ask.shots] for ask in trained.asks}}
       if any(ask.shots for ask in trained.asks) else {}),
    'asked': {ask.task: {main: sorted(kinds) for main, kinds in ask.asked.items()}
              for ask in trained.asks},
  }


def _check_settings(output: Path, settings: dict[str, Any]) -> None:
  """Raises InputError when predict.json in the output differs from `settings`."""
  path = output / _SETTINGS
  recorded = _BEFORE | read_json(path) if path.exists() else settings
  # Examples that were shown before are none now, where there are none.
  changed = [key for key in {**settings, 'shots': {}}
             if recorded.get(key, {}) != settings.get(key, {})]
  named = ', '.join(
    f'other {key}' if isinstance(settings.get(key, {}), dict)
    else f'{key}={recorded.get(key)!r}, this one has {settings[key]!r}' for key in changed)
  if named:
    raise InputError(
      f'--output={output}: holds annotations of {recorded.get("adapter_folder")} with {named}; '
      'choose another folder')


def _plan(notes: Notes, records: dict[str, dict], reporter: Reporter) -> _Plan:
  """The plan for these notes; `records` are those of earlier calls."""
  kept, left, sentences = {}, [], 0
  with reporter.task('reading notes', len(notes.names)) as advance:
    for note in notes.read(notes.names):
      if held_document(records.get(note.name), note):
        kept[note.name] = records[note.name]
      else:
        left.append(note.name)
        sentences += len(split_sentences(note.text))
      advance()
  # Kept, since a note that cannot be read now may be readable later, and people may have corrected
  # its annotation.
  others = {
    file: record for file, record in records.items() if file not in kept and file not in left}
  return _Plan(kept, others, left, sentences, notes.skipped)


def _load(trained: Trained, reporter: Reporter) -> Annotator:
  """Loads base model and adapter."""
  chosen = trained.settings
  path = model_path(chosen['model.path'])
  try:
    mesh = make_mesh(*(chosen[f'mesh.{axis}'] for axis in AXES))
  except InputError as error:
    raise InputError(
      f'{error}; --mesh_site, --mesh_fsdp and --mesh_tensor choose another than the run had'
    ) from None
  placement = Placement(
    DTYPES[chosen['model.dtype']], chosen['model.quantization'],
    mesh and partial(base_shardings, mesh), chosen[matmul.KEY] == matmul.ROUNDED)
  with reporter.task(f'loading {Path(path).name}'):
    base = load_model(path, placement)
    annotator = make_annotator(trained, base, mesh)
  if base.left_out:
    reporter.warn(base.left_out)
  return annotator


def _carried_out(
  annotator: Annotator | None, plan: _Plan, notes: Notes, output: Path, form: str,
  asked: Mapping[str, Asked], schema: Schema, reporter: Reporter,
) -> dict[str, dict]:
  """Writes the missing files of kept notes and annotates the others -> {file: record} of both."""
  records = dict(plan.kept)
  write_lists(output, plan.others | records, plan.skipped)
  unwritten = [file for file in records if missing_files(output, form, file)]
  for note in notes.read(unwritten):
    if document := held_document(records[note.name], note):
      write_files(output, form, document, records[note.name], schema, only_missing=True)
  if annotator:
    take_away_joint(output, form)
    with reporter.task('sentences', plan.sentences) as advance:
      for annotation in annotate(annotator, notes.read(plan.left), advance):
        record = record_of(annotation)
        write_files(output, form, annotation.document, record, schema)
        # The record comes last: after a stop in between, the note is annotated again.
        take_away_other_forms(output, form, record['file'])
        append_record(output, record)
        records[record['file']] = record
    write_lists(output, plan.others | records, plan.skipped)
  for file, text in FORMS[form].whole(records, plan.skipped, asked, schema).items():
    write_text(output / file, text)
  if FORMS[form].joint:
    held = (held_document(records[note.name], note)
            for note in notes.read([name for name in notes.names if name in records]))
    write_joint(output, form, (document for document in held if document))
  return records


def _span_table(records: dict[str, dict]) -> Table | None:
  """What was found, where a screen has room for it."""
  found = [(file, one) for file, record in records.items() for one in record['entities']]
  if not 0 < len(found) <= _SHOWN:
    return None
  table = Table(title='Found, and checked by nobody')
  for name in ('note', 'characters', 'type', 'words'):
    table.add_column(name, overflow='fold')
  for file, one in found:
    table.add_row(*(word if word.isprintable() else ascii(word) for word in (
      file, f'{one["start"]}-{one["end"]}', one['type'], ' '.join(one['text'].split()))))
  return table


def _outcome(records: dict[str, dict], plan: _Plan, output: Path, form: str) -> Iterator[str]:
  """The lines that are printed at the end."""
  def total(key: str) -> int:
    return sum(record[key] for record in records.values())

  entities, relations = (
    sum(len(record[key]) for record in records.values()) for key in ('entities', 'relations'))
  place = output / (form if FORMS[form].files('') or FORMS[form].joint else RECORDS)
  before = '' if not plan.kept else ', from before' if len(plan.kept) == len(records) else (
    f', {len(plan.kept)} of them from before')
  yield (
    f'{many(len(records), "note")} in {place}{before}: {many(total("sentences"), "sentence")}, '
    f'{many(entities, "span")}, {many(relations, "relation")}; unreadable answers '
    f'{total("unreadable")} of {total("answers")}')
  if cut := total('cut'):
    yield (f'{many(cut, "sentence")} {"was" if cut == 1 else "were"} too long and '
           f'{"was" if cut == 1 else "were"} asked about in pieces')
  if plan.skipped:
    names = [name if name.isprintable() else ascii(name) for name in sorted(plan.skipped)]
    more = f' and {len(names) - _LISTED} more' if len(names) > _LISTED else ''
    yield (f'warning: {len(names)} skipped, see {output / SKIPPED}: '
           f'{", ".join(names[:_LISTED])}{more}')

"""Label Studio's JSON: an array of tasks, as its exports JSON and JSON-MIN and its imports are.

Offsets are characters (code points) of the task's text, as Label Studio counts them since 1.0.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

from fedmedjax.data.formats.faults import Faults
from fedmedjax.data.formats.files import (
  Located,
  int_field,
  list_field,
  parse_json,
  read_text,
  text_field,
  with_own_names,
)
from fedmedjax.data.formats.quotes import Draft, Quote, as_one_unit
from fedmedjax.data.formats.settle import settle
from fedmedjax.data.formats.table_rows import IDS, TEXTS, column, name_field, plain
from fedmedjax.data.sources import stated
from fedmedjax.types import Document, InputError, Relation, Span

_FORM = "Label Studio's JSON"
_NO_LABEL = 'relation'  # type of a relation that has no label


def read_label_studio(path: str | Path) -> tuple[list[Document], Counter]:
  """Reads one file.

  The text is the key `text` of a task's data, or its only text. Of several annotations of a task
  the one marked as ground truth counts, else the first that was not skipped. Suggestions of a model
  (`predictions`) are read where tasks have no key `annotations`, as in files to import.

  Args:
    path: the file.

  Returns:
    The documents, named by an id in their data (`table_rows.IDS`), else by the task's, and counts:
    documents, entities, relations, those of `settle`, unannotated (tasks that nobody has
    annotated, left out), other_annotations (of further annotators, left out), predictions (read),
    other_results (choices and the like, left out), unanchored, renamed_documents.
  """
  path = Path(path)
  content = parse_json(path, read_text(path))
  counts, faults, drafts, rows = Counter(), Faults(), [], set()
  for task in content if isinstance(content, list) else [content]:
    with faults:
      if not isinstance(task, Located):
        raise InputError(f'{path}:1: malformed, expected {_FORM} (an array of tasks)')
      draft = _document(path, task, counts)
      # JSON-MIN has a row for each annotation of a task.
      if draft and 'data' not in task and task.get('id') in rows:
        counts['other_annotations'] += 1
      elif draft:
        drafts.append(draft)
        rows |= {task['id']} if 'id' in task else set()
  faults.tell()
  if not drafts:
    raise InputError(f'no annotated task in {path}')
  return with_own_names(settle(drafts, counts), counts), counts


def _document(path: Path, task: Located, counts: Counter) -> Draft | None:
  """The document of a task; None where nobody annotated it. Adds to `counts`."""
  place = (path, task.line)
  data = task.get('data', task)
  if not isinstance(data, dict):
    raise InputError(f"{path}:{task.line}: malformed, expected {_FORM}: 'data' is no object")
  key = column(data, ['text']) or _only_text(place, data)
  text = text_field(place, data, key, _FORM)
  results = _results(place, task, counts)
  if results is None:
    counts['unannotated'] += 1
    return None
  name = name_field(place, data, _FORM) or text_field(
    place, task, 'id', _FORM, f'task_{task.line}')
  index, spans, quotes, links = {}, [], [], []
  for result in results:
    line = result.line if isinstance(result, Located) else task.line
    if not isinstance(result, dict):
      raise InputError(f'{path}:{line}: malformed, expected {_FORM}: a result is no object')
    if result.get('type') == 'relation' or 'from_id' in result:
      links.append(result)
      continue
    labels = _labels((path, line), result)
    if not labels:
      counts['other_results'] += 1
    ident = result.get('id')
    for label in labels:
      if isinstance(ident, str | int):
        index.setdefault(str(ident), len(spans))
      spans.append(Span(0, 0, label))
      quotes.append(_quote((path, line), result['value'], text, label))
  found = list(_relations(path, links, index))
  relations = [link for link in found if link]
  counts.update(documents=1, entities=len(spans), relations=len(relations),
                unanchored=len(found) - len(relations))
  of = stated(data)
  document = Document(name, text, tuple(spans), tuple(relations), '' if of == name else of)
  return Draft(document, tuple(quotes), as_one_unit(text))


def _only_text(place, data: dict) -> str:
  """The key of the only text of a task's data that may be a note."""
  texts = [key for key, value in data.items() if isinstance(value, str)]
  named = [key for key in texts if plain(key) in map(plain, TEXTS)]
  # In JSON-MIN times and users stand beside the text.
  others = [key for key in texts if plain(key) not in {*map(plain, IDS), 'createdat', 'updatedat'}]
  for keys in (named, others):
    if len(keys) == 1:
      return keys[0]
  raise InputError(f"{place[0]}:{place[1]}: the task's data has no key 'text'; its texts are "
                   f'{", ".join(map(repr, texts)) or "none"}')


def _results(place, task: Located, counts: Counter) -> list | None:
  """The regions and relations of the annotation that counts; None where there is none."""
  if 'data' not in task:  # JSON-MIN: the results stand among the data, under the name of a control
    return _minimal(task)
  key = next((key for key in ('annotations', 'completions', 'predictions') if key in task), None)
  found = list_field(place, task, key, _FORM) if key else []
  if not all(isinstance(one, Located) for one in found):
    raise InputError(
      f'{place[0]}:{place[1]}: malformed, expected {_FORM}: {key!r} holds no objects')
  kept = [one for one in found if not one.get('was_cancelled') and not one.get('skipped')]
  if not kept:
    return None
  chosen = next((one for one in kept if one.get('ground_truth')), kept[0])
  counts['other_annotations'] += len(kept) - 1
  counts['predictions'] += key == 'predictions'
  return list_field((place[0], chosen.line), chosen, 'result', _FORM)


def _minimal(task: Located) -> list | None:
  """The regions of a task of JSON-MIN, which has no relations; None where it has no region."""
  lists = [value for value in task.values() if isinstance(value, list) and value and all(
    isinstance(one, dict) and 'labels' in one for one in value)]
  results = []
  for value in (one for found in lists for one in found):
    result = Located(value=value, type='labels')
    result.line = value.line
    results.append(result)
  return results or None


def _labels(place, result: dict) -> list[str]:
  """The labels of a region of text; [] for results of other kinds."""
  value = result.get('value')
  kind = result.get('type')
  # Choices and ratings of a region repeat its place.
  if not isinstance(value, dict) or 'start' not in value or kind not in value or (
      not str(kind).endswith('labels')):
    return []
  labels = value[kind]
  if isinstance(value['start'], str):
    raise InputError(f"{place[0]}:{place[1]}: malformed, expected {_FORM}: 'start' is no offset "
                     '(regions of a Text are read, those of HyperText are not)')
  if not isinstance(labels, list):
    raise InputError(
      f'{place[0]}:{place[1]}: malformed, expected {_FORM}: {kind!r} holds no labels')
  return [text_field(place, {kind: label}, kind, _FORM) for label in labels]


def _quote(place, value: dict, text: str, label: str) -> Quote:
  """A region's place and words as they are stated."""
  start, end = (int_field(place, value, key, _FORM) for key in ('start', 'end'))
  words = value.get('text')
  words = words if isinstance(words, str) else ''
  if '\\n' in words and words not in text:
    words = words.replace('\\n', '\n')  # as Label Studio writes a line end in a region's words
  return Quote((*place, label), ((start, end),), words)


def _relations(
  path: Path, links: Sequence[Located], index: dict[str, int]
) -> Iterator[Relation | None]:
  """The relations, one a label; None where a region is not there."""
  for link in links:
    ends = [index.get(str(link.get(key))) for key in ('from_id', 'to_id')]
    if link.get('direction') == 'left':
      ends.reverse()
    for label in list_field((path, link.line), link, 'labels', _FORM) or [_NO_LABEL]:
      text_field((path, link.line), {'labels': label}, 'labels', _FORM)
      yield None if None in ends else Relation(label, *ends)


def label_studio_task(document: Document) -> dict:
  """A task to import, whose spans are suggestions for the configuration of `labelling`."""
  result = [
    {'id': f'T{i}', 'from_name': 'label', 'to_name': 'text', 'type': 'labels',
     'value': {'start': span.start, 'end': span.end, 'labels': [span.type],
               'text': document.text[span.start:span.end]}}
    for i, span in enumerate(document.spans, 1)]
  result += [
    {'type': 'relation', 'from_id': f'T{link.head + 1}', 'to_id': f'T{link.tail + 1}',
     'direction': 'right', 'labels': [link.type]} for link in document.relations]
  return {'data': {'document_id': document.name, 'text': document.text},
          'predictions': [{'model_version': 'fedmedjax', 'result': result}]}


def labelling(types: Sequence[str], relations: Sequence[str]) -> str:
  """A project's labelling configuration, in XML, for these types of spans and relations."""
  lines = ['<View>']
  if relations:
    lines += ['  <Relations>', *(f'    <Relation value={quoteattr(kind)}/>' for kind in relations),
              '  </Relations>']
  lines += ['  <Labels name="label" toName="text">',
            *(f'    <Label value={quoteattr(kind)}/>' for kind in types), '  </Labels>',
            '  <Text name="text" value="$text"/>', '</View>']
  return ''.join(f'{line}\n' for line in lines)

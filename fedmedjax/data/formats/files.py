"""Functions that all readers share: files, lines, JSON and XML whose objects know their lines."""

import json
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from xml.parsers import expat

from fedmedjax.data.formats.faults import Faults
from fedmedjax.data.formats.part_names import named_papers, named_parts
from fedmedjax.data.sources import source_of
from fedmedjax.types import Document, InputError

# At most nine digits: Python refuses to convert absurdly long ones, with an untyped error.
INT = '[0-9]{1,9}'
_PACKED = ('.gz', '.zip', '.tgz', '.tar', '.bz2', '.xz', '.7z')
Place = tuple[Path, int]  # a file and a line in it, from 1


def read_bytes(path: Path) -> bytes:
  """The bytes of a file; raises InputError when it cannot be read."""
  try:
    return path.read_bytes()
  except (OSError, ValueError) as error:
    raise InputError(f'cannot read {path}: {error}') from error


def read_text(path: Path, mark: bool = False) -> str:
  """The text of a UTF-8 file, with its carriage returns; with its byte-order mark if `mark`.

  Raises InputError, naming the line, when it is no UTF-8.
  """
  content = read_bytes(path)
  try:
    return content.decode('utf-8' if mark else 'utf-8-sig')
  except UnicodeDecodeError as error:
    line = content.count(b'\n', 0, error.start) + 1
    raise InputError(f'{path}:{line}: no UTF-8 text: {error.reason}') from error


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
  """Yields (number from 1, line), cut at line feeds only, without carriage return.

  A byte-order mark before a line is left out: files with one are put after another.
  """
  for number, line in enumerate(read_text(path).split('\n'), 1):
    yield number, line.removeprefix('\ufeff').removesuffix('\r')


def malformed(path: Path, number: int, form: str) -> InputError:
  """The error for a line that is not of the format `form`."""
  return InputError(f'{path}:{number}: malformed line, expected {form}')


def hint(folder: Path, endings: Sequence[str]) -> str:
  """Where files of these endings are, for the error that a folder has none; '' = nowhere."""
  files = [path for path in sorted(folder.rglob('[!.]*')) if path.is_file()]
  found = [path for path in files
           if path.suffix.lower() in endings and not named_papers(path.stem)]
  if not found:
    packed = next((path for path in files if path.suffix.lower() in _PACKED), None)
    return f'; unpack {packed}' if packed else ''
  if found[0].parent == folder:
    return f'; {found[0].name} is there: rename it, endings are read in small letters'
  places = list(dict.fromkeys(
    path.parent.parent if named_parts(path.parent.name) else path.parent for path in found))
  if len(places) > 1:
    return (f'; there are some in {places[0]} and {len(places) - 1} other folders: '
            'put them into one')
  return f'; there are some in {places[0]}: give that folder'


def with_own_names(documents: Sequence[Document], counts: Counter) -> list[Document]:
  """The documents, with a name that occurs again made NAME_2, NAME_3, ... and counted.

  The source of the name as it was is theirs: they are parts of one article or record.
  """
  seen, kept = Counter(), []
  taken = {document.name for document in documents}
  for document in documents:
    name = document.name
    seen[name] += 1
    if seen[name] > 1:
      document = document._replace(source=source_of(document))
      while (name := f'{document.name}_{seen[document.name]}') in taken:
        seen[document.name] += 1
      taken.add(name)
      counts['renamed_documents'] += 1
    kept.append(document._replace(name=name))
  return kept


class Unit(NamedTuple):
  """A stretch of a document's text, and the offset that its source gives it."""

  offset: int
  text: str


class Layout(NamedTuple):
  """Units laid out in one text; see `lay_out`."""

  units: tuple[Unit, ...]
  starts: tuple[int, ...]  # place in the text at which each unit begins
  text: str


def lay_out(units: Sequence[Unit], counts: Counter) -> Layout:
  r"""Puts units after one another, at the offsets that they state where these leave small gaps.

  A gap is filled with '\n' and blanks. Offsets that overlap, go back or leap (counted in bytes,
  or of a part of the note only) are repaired: such a unit follows on a line of its own and
  counts as 'moved_passages'; annotations find their place by their unit, so they move along.
  """
  pieces, starts, length, before = [], [], 0, None
  for unit in units:
    gap = unit.offset - (before.offset + len(before.text)) if before else unit.offset
    if 0 <= gap <= 8:
      filling = '\n' + ' ' * (gap - 1) if gap and before else ' ' * gap
    else:
      filling = '\n' if before else ''
      counts['moved_passages'] += 1
    pieces += [filling, unit.text]
    starts.append(length + len(filling))
    length = starts[-1] + len(unit.text)
    before = unit
  return Layout(tuple(units), tuple(starts), ''.join(pieces))


class Located(dict):
  """A JSON object, or an XML element turned into one, with the line in which it begins."""

  line = 0


def parse_json(path: Path, text: str) -> Any:
  """JSON whose objects are `Located`. Raises InputError with the line where it breaks off."""
  breaks = [match.start() for match in re.finditer('\n', text)]
  decoder = json.JSONDecoder()

  def parse_object(state, *rest):
    value, end = json.decoder.JSONObject(state, *rest)
    located = Located(value)
    located.line = bisect_left(breaks, state[1]) + 1
    return located, end

  # The scanner in C takes no parser of objects; the one in Python does.
  decoder.parse_object = parse_object
  decoder.scan_once = json.scanner.py_make_scanner(decoder)
  try:
    return decoder.decode(text)
  except json.JSONDecodeError as error:
    raise malformed(path, error.lineno, f'JSON ({error.msg})') from error
  except (ValueError, RecursionError) as error:  # digits without end, brackets without end
    raise malformed(path, 1, 'JSON that Python can read') from error


def json_records(path: Path, form: str) -> Iterator[tuple[Place, dict]]:
  """Yields (place, object) of a file that holds a JSON array, or an object a line."""
  text = read_text(path)
  if text.lstrip().startswith('['):
    for record in parse_json(path, text):
      if not isinstance(record, Located):
        raise InputError(f'{path}:1: malformed, expected an array of objects ({form})')
      yield (path, record.line), record
    return
  faults = Faults()
  for number, line in enumerate(text.split('\n'), 1):
    if line.strip():
      record = None
      with suppress(ValueError, RecursionError):
        record = json.loads(line)
      if isinstance(record, dict):
        yield (path, number), record
      else:
        faults.found.append(malformed(path, number, form))
  faults.tell()


class Element(NamedTuple):
  """An XML element, with the line in which it begins and the pieces of its text."""

  tag: str
  attributes: dict[str, str]
  line: int
  children: list['Element']
  pieces: list[str]


def read_xml(path: Path) -> Element:
  """The root element of an XML file; entity declarations are refused, no other file is read."""
  parser = expat.ParserCreate()
  stack = [Element('', {}, 0, [], [])]

  def start(tag, attributes):
    element = Element(tag, attributes, parser.CurrentLineNumber, [], [])
    stack[-1].children.append(element)
    stack.append(element)

  def refuse(*_):
    raise InputError(f'{path}:{parser.CurrentLineNumber}: XML entities are not read')

  parser.StartElementHandler = start
  parser.EndElementHandler = lambda tag: stack.pop()
  parser.CharacterDataHandler = lambda text: stack[-1].pieces.append(text)
  parser.EntityDeclHandler = parser.SkippedEntityHandler = refuse
  try:
    parser.Parse(read_bytes(path), True)
  except expat.ExpatError as error:
    raise malformed(path, error.lineno, f'XML ({error})') from error
  except (ValueError, LookupError) as error:  # an encoding that Python does not know
    if isinstance(error, InputError):
      raise
    raise malformed(path, parser.CurrentLineNumber, f'XML ({error})') from error
  return stack[0].children[0]


def text_field(place: Place, record: dict, key: str, form: str, default: str | None = None) -> str:
  """A record's string `key`; raises InputError, naming the place, where it is no UTF-8 text.

  An id may be a number, too.
  """
  value = record.get(key, default)
  if type(value) is int and key.endswith('id'):
    value = str(value)
  try:
    value.encode()
  except (AttributeError, UnicodeEncodeError) as error:
    raise InputError(f'{place[0]}:{place[1]}: malformed, expected {form}: {key!r} is no text'
                     ) from error
  return value


def list_field(place: Place, record: dict, key: str, form: str) -> list:
  """A record's list `key`, empty where it is absent or null; raises InputError for other values."""
  value = record.get(key)
  if value is None:
    return []
  if not isinstance(value, list):
    raise InputError(f'{place[0]}:{place[1]}: malformed, expected {form}: {key!r} is no list')
  return value


def int_field(place: Place, record: dict, key: str, form: str) -> int:
  """A record's integer `key`; raises InputError unless it is >= 0 and of nine digits at most."""
  value = record.get(key)
  if type(value) is not int or not 0 <= value < 10**9:
    raise InputError(f'{place[0]}:{place[1]}: malformed, expected {form}: {key!r} is no offset')
  return value

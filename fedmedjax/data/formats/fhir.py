"""Notes in FHIR resources: attachments of DocumentReference, presentedForm of DiagnosticReport.

A file is a Bundle, a resource, an array of them, or has one a line (ndjson, as bulk exports do).
Read are attachments of text/plain that hold their text (base64); nothing is fetched.
"""

import base64
import binascii
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fedmedjax.data.formats.faults import Faults
from fedmedjax.data.formats.files import (
  Located,
  Place,
  list_field,
  parse_json,
  read_text,
  text_field,
)
from fedmedjax.types import InputError

_FORM = 'FHIR'
_KINDS = ('DocumentReference', 'DiagnosticReport')
_PLAIN = re.compile(r'text/plain\s*(?:;.*)?', re.IGNORECASE | re.DOTALL)
_CHARSET = re.compile(r';\s*charset\s*=\s*["\']?([^\s;"\']+)', re.IGNORECASE)


class Attachments(NamedTuple):
  """What a file of resources holds."""

  texts: dict[str, str]    # {id of the resource: its text}
  skipped: dict[str, str]  # {id of a resource without a text that can be read: why}


class _Entry(NamedTuple):
  """A resource and where it stands."""

  place: Place
  number: int  # from 1
  url: str     # its fullUrl in a Bundle
  resource: Located


def is_fhir(path: Path) -> bool:
  """Whether a file of JSON holds FHIR resources rather than rows."""
  return bool(re.search(r'(?<!\\)"resourceType"\s*:', read_text(path)))


def read_fhir(path: Path) -> Attachments:
  """Reads the texts of one file.

  A text is named by its resource's id, with the kind of resource in front where two kinds have the
  same id (DiagnosticReport/7), and with _2, _3 behind it where a resource has several texts.

  Raises:
    InputError: it is no FHIR, an id occurs twice, or a resource has no text for a text/plain that
      stands at a URL, is no base64 or no text of its charset; all of them are told in one error.
  """
  faults, texts, skipped = Faults(), {}, {}
  entries = list(_entries(path))
  binaries = _binaries(entries)
  wanted = [entry for entry in entries if entry.resource.get('resourceType') in _KINDS]
  seen: set[tuple[str, str]] = set()
  names: list[tuple[_Entry, str]] = []
  for entry in wanted:
    with faults:
      name, kind = _name(entry), entry.resource['resourceType']
      if (kind, name) in seen:
        raise _error(entry, f'the id {name!r} occurs twice')
      seen.add((kind, name))
      names.append((entry, name))
  many = Counter(name for _, name in names)
  for entry, name in names:
    name = name if many[name] == 1 else f'{entry.resource["resourceType"]}/{name}'
    with faults:
      found, why = _texts(entry, binaries)
      for number, text in enumerate(found, 1):
        own = name if number == 1 else f'{name}_{number}'
        if own in texts:
          raise _error(entry, f'the id {own!r} occurs twice')
        texts[own] = text
      if not found:
        skipped[name] = why
  faults.tell()
  if not wanted:
    kinds = Counter(str(entry.resource.get('resourceType')) for entry in entries)
    raise InputError(f'{path}: no {" or ".join(_KINDS)} in it; it has '
                     f'{", ".join(kinds) or "no resource"}')
  return Attachments(texts, skipped)


def _entries(path: Path) -> Iterator[_Entry]:
  """The resources of a file, those in a Bundle one by one."""
  text = read_text(path)
  lines = [(number, line) for number, line in enumerate(text.split('\n'), 1) if line.strip()]
  faults, parts = Faults(), []
  if len(lines) > 1 and all(
      line.strip()[0] == '{' and line.strip()[-1] == '}' for _, line in lines):
    for number, line in lines:
      with faults:
        part = parse_json(path, line)
        part.line = number
        parts.append(part)
    faults.tell()
  else:
    content = parse_json(path, text)
    parts = content if isinstance(content, list) else [content]
  number = 0
  for part in parts:
    if not isinstance(part, Located) or not isinstance(part.get('resourceType'), str):
      line = getattr(part, 'line', 1)
      raise InputError(f"{path}:{line}: malformed, expected {_FORM}: 'resourceType' is missing")
    bundled = list_field((path, part.line), part, 'entry', _FORM) if (
      part['resourceType'] == 'Bundle') else [Located(resource=part)]
    for entry in bundled:
      number += 1
      resource = entry.get('resource') if isinstance(entry, dict) else None
      if resource is None and isinstance(entry, dict):
        continue  # as in a history, of what was deleted
      if not isinstance(resource, Located):
        raise InputError(f'{path}:{part.line}: malformed, expected {_FORM}: entry {number} is no '
                         'resource')
      url = entry.get('fullUrl')
      line = resource.line or part.line
      yield _Entry((path, line), number, url if isinstance(url, str) else '', resource)


def _binaries(entries: list[_Entry]) -> dict[str, Located]:
  """The Binary resources by the URLs under which attachments name them."""
  found = {}
  for entry in entries:
    if entry.resource.get('resourceType') == 'Binary':
      for url in (entry.url, f'Binary/{entry.resource.get("id")}'):
        found[url] = entry.resource
  return found


def _name(entry: _Entry) -> str:
  """A resource's id, else the end of its URL, else its kind and number."""
  own = text_field(entry.place, entry.resource, 'id', _FORM, '')
  end = re.split('[:/]', entry.url)[-1]
  return own or end or f'{entry.resource["resourceType"]}_{entry.number}'


def _error(entry: _Entry, said: str) -> InputError:
  kind, name = entry.resource['resourceType'], entry.resource.get('id')
  called = f'{kind}/{name}' if isinstance(name, str) else kind
  return InputError(
    f'{entry.place[0]}:{entry.place[1]}: entry {entry.number} ({called}): {said}')


def _texts(entry: _Entry, binaries: dict[str, Located]) -> tuple[list[str], str]:
  """The texts of a resource's attachments, and why there are none."""
  resource, place = entry.resource, entry.place
  if resource['resourceType'] == 'DocumentReference':
    attachments = [part.get('attachment') if isinstance(part, dict) else part
                   for part in list_field(place, resource, 'content', _FORM)]
  else:
    attachments = list_field(place, resource, 'presentedForm', _FORM)
  texts, others, problems, remote = [], [], Faults(), Faults()
  for number, attachment in enumerate(attachments, 1):
    with problems:
      if not isinstance(attachment, dict):
        raise _error(entry, f'attachment {number} is no object')
      kind = attachment.get('contentType')
      url = attachment.get('url')
      held = binaries.get(url, attachment) if isinstance(url, str) else attachment
      kind = held.get('contentType') if kind is None else kind
      if kind is not None and not isinstance(kind, str):
        raise _error(entry, f'the contentType of attachment {number} is no text')
      if kind and not _PLAIN.fullmatch(kind.strip()):
        others.append(kind)
        continue
      if held.get('data') is not None:
        texts.append(_decoded(entry, number, held, kind))
      elif url is not None:
        remote.found.append(_error(
          entry, f'attachment {number} stands at a URL ({str(url)[:80]}) and is not fetched; only '
          'text in `data` is read'))
      else:
        others.append('an attachment without data')
  problems.tell()
  if not texts:  # several attachments are one document in several forms; one is enough
    remote.tell()
  named = ', '.join(dict.fromkeys(others))
  return texts, f'no text/plain: {named}' if named else 'no attachment'


def _decoded(entry: _Entry, number: int, held: dict[str, Any], kind: str | None) -> str:
  """The text of an attachment's data."""
  data = held['data']
  try:
    content = base64.b64decode(''.join(data.split()), validate=True)
  except (AttributeError, ValueError, binascii.Error):
    raise _error(entry, f'the data of attachment {number} is no base64') from None
  charset = _CHARSET.search(kind or '')
  charset = charset[1] if charset else 'utf-8'
  try:
    text = content.decode(charset)
  except LookupError:
    raise _error(entry, f'attachment {number} has the unknown charset {charset!r}') from None
  except ValueError:
    raise _error(entry, f'the data of attachment {number} is no text in {charset}') from None
  if '\0' in text:
    raise _error(entry, f'the data of attachment {number} is no text: it has zero bytes')
  return text

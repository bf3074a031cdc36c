"""The source of a document: the article, trial or patient that several documents may be parts of.

Whatever deals documents out or draws them (splits, the validation set, partitions, intervals) goes
by source: two passages of an article, or two letters about a patient, are no two independent notes.
A source is what the reader or the user said, or else what the document's name says.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedmedjax.types import Document, InputError

# Registered names of articles and trials: ClinicalTrials.gov, PubMed Central, PubMed.
_REGISTERED = r'NCT\d+|PMC[-_]?\d+|PMID[-_:]?\d+'
# In front of a part's own name, 'NCT00050349_exc', 'PMC-1134658-01-INTRO', '8908396_3': such a
# name, or a number that is too long for one that counts documents.
_PART = re.compile(rf'({_REGISTERED}|\d{{6,}})[^0-9A-Za-z].*', re.DOTALL | re.IGNORECASE)
# The same wherever it occurs: what a number means elsewhere is uncertain unless it is long.
_ANYWHERE = re.compile(rf'{_REGISTERED}|[1-9]\d{{6,7}}', re.IGNORECASE)
# What counts documents from 1 in each part of a corpus: the same number elsewhere means nothing.
_COUNTER = re.compile(r'\d{1,5}')
# Names of documents by format, where the format's own rule says what the source is: PHEE's
# ABSTRACT_SENTENCE, the records of a patient in i2b2 (2014: 220-03).
_BY_FORMAT = {
  'phee': re.compile(r'(.+)_\d+'),
  'i2b2': re.compile(r'(\d{3})-\d{2}'),
}
# Keys by which records name the patient or the note that they come from, widest first; in small
# letters, without what stands between these.
_KEYS = (
  'patientid', 'patient', 'subjectid', 'articleid', 'pmid', 'pmcid', 'nctid', 'hadmid',
  'documentid', 'docid', 'noteid', 'reportid', 'filename', 'fileid')


def stated(record: Mapping[str, Any]) -> str:
  """The source that a record of sentences names; '' where it names none."""
  named = {''.join(filter(str.isalnum, key)).casefold(): value for key, value in record.items()}
  for key in _KEYS:
    value = named.get(key)
    if isinstance(value, float) and value.is_integer():  # of a column with gaps
      value = int(value)
    if isinstance(value, str | int) and str(value).strip():
      return str(value).strip()
  return ''


def source_of(document: Document) -> str:
  """The document's source; its own name where nothing says that it is a part of something."""
  if document.source:
    return document.source
  part = _PART.fullmatch(document.name)
  return part[1] if part else document.name


def origin_of(document: Document) -> str:
  """The document's source; the note's name for a sentence that is a source (`pieces.drawable`)."""
  source = source_of(document)
  return source.partition('#')[0] if source == document.name else source


def with_sources(
  documents: Sequence[Document], form: str, pattern: str = '', place: str = ''
) -> list[Document]:
  """The documents, with the source that their format or the user's pattern finds in their names.

  Args:
    documents: as read; a source that the reader set is kept, and looked through as a name is.
    form: a key of `readers.FORMATS`.
    pattern: a regular expression; its group, or all that it matches, is the source; all, too, where
      the group is but a small number. '' = the format's own rule.
    place: where the pattern came from, for error messages.

  Raises:
    InputError: the pattern fits no document.
  """
  rule = re.compile(pattern) if pattern else _BY_FORMAT.get(form)
  if rule is None:
    return list(documents)
  named = []
  for document in documents:
    name = document.source or document.name
    found = rule.search(name) if pattern else rule.fullmatch(name)
    source = found and (found[1] if rule.groups else found[0])
    if pattern and source and _COUNTER.fullmatch(source):
      source = found[0]
    named.append(document._replace(source=source) if source else document)
  if pattern and named == list(documents):
    raise InputError(
      f'{place}.source={pattern!r}: fits no name of its {len(documents)} notes, such as '
      f'{documents[0].name!r}')
  return named


def is_counter(source: str) -> bool:
  """Whether it is a small number, which may count documents anew in each part of a corpus."""
  return bool(_COUNTER.fullmatch(source))


def registered(source: str) -> bool:
  """Whether it means the same article or trial in corpora of any origin."""
  return bool(_ANYWHERE.fullmatch(source))


def distinct(documents: Iterable[Document]) -> list[str]:
  """The sources of the documents, each once, in order."""
  return list(dict.fromkeys(map(source_of, documents)))


def known_sources(documents: Iterable[Document], anywhere: bool = False) -> set[str]:
  """The sources that mean the same article, trial or patient in another part of the corpus.

  A plain name does not, nor a small number: files are often numbered anew in each part.

  Args:
    documents: of one part.
    anywhere: True = those that do so in corpora of another origin, too.
  """
  known = set()
  for document in documents:
    source, origin = source_of(document), origin_of(document)
    own = document.source and origin == source and not anywhere and not _COUNTER.fullmatch(source)
    if own or registered(origin):
      known.add(origin)
  return known

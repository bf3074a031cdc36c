"""Writes notes as UIMA CAS, with types that INCEpTION and DKPro know."""

import re
from functools import lru_cache
from typing import Any

from fedmedjax.data.formats.cas_files import library
from fedmedjax.types import Document

_ENTITY = 'de.tudarmstadt.ukp.dkpro.core.api.ner.type.NamedEntity'
_META = 'de.tudarmstadt.ukp.dkpro.core.api.metadata.type.DocumentMetaData'
_RELATION = 'webanno.custom.Relation'
# Characters that XML 1.0 has no way to write, such as form feeds.
_UNWRITABLE = re.compile('[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]')


@lru_cache(maxsize=1)
def _types() -> Any:
  """The type system of what is written."""
  types = library('--format=uima_xmi or uima_json').TypeSystem()
  entity = types.create_type(_ENTITY)
  relation = types.create_type(_RELATION)
  meta = types.create_type(_META, 'uima.tcas.DocumentAnnotation')
  for of, name, holds in (
      (entity, 'value', 'uima.cas.String'), (entity, 'identifier', 'uima.cas.String'),
      (relation, 'Governor', _ENTITY), (relation, 'Dependent', _ENTITY),
      (relation, 'value', 'uima.cas.String'),
      (meta, 'documentTitle', 'uima.cas.String'), (meta, 'documentId', 'uima.cas.String')):
    types.create_feature(of, name, holds)
  return types


def type_system() -> str:
  """The content of TypeSystem.xml, which XMI files need beside them."""
  return _types().to_xml()


def _cas(document: Document) -> Any:
  """The CAS of a document: each span a NamedEntity whose value is its type."""
  types = _types()
  cas = library('').Cas(types)
  cas.sofa_string, cas.sofa_mime = document.text, 'text/plain'
  cas.add(types.get_type(_META)(
    begin=0, end=len(document.text), documentTitle=document.name, documentId=document.name))
  entity, relation = types.get_type(_ENTITY), types.get_type(_RELATION)
  spans = [entity(begin=span.start, end=span.end, value=span.type) for span in document.spans]
  for span in spans:
    cas.add(span)
  for link in document.relations:
    head, tail = spans[link.head], spans[link.tail]
    # As INCEpTION places an arc: at the span where it ends.
    cas.add(relation(
      begin=tail.begin, end=tail.end, Governor=head, Dependent=tail, value=link.type))
  return cas


def uima_xmi(document: Document) -> str:
  """The XMI file of a document, where characters that XML cannot hold are blanks."""
  return _cas(document._replace(
    name=_UNWRITABLE.sub(' ', document.name), text=_UNWRITABLE.sub(' ', document.text))).to_xmi()


def uima_json(document: Document) -> str:
  """The JSON file of a document, with its type system."""
  return _cas(document).to_json()

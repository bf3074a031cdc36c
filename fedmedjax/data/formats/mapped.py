"""The use of a mapping: documents with the raw types of a corpus become those of a schema."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import product

from fedmedjax.data.formats.mapping import Mapping, Rule, first_of
from fedmedjax.data.sentences import note_sentences
from fedmedjax.types import Document, Relation, Span

# In a report, before the raw type of entities or relations that no row of the mapping names.
LACKING, LACKING_RELATION = 'lacking_type_', 'lacking_relation_'


def apply_mapping(
  documents: Iterable[Document], mapping: Mapping
) -> tuple[list[Document], Counter]:
  """Translates types of spans and relations, drops those without a row, and merges equal spans.

  The spans of a mapped document are its entities, in their order, and then its modifiers.

  Returns:
    The documents, and counts: entities and relations (kept), unmapped and duplicate (entities
    dropped), lacking_type_RAW (the unmapped ones by raw type, where it
    is none of modifiers either), mapped_TYPE (before merging),
    unmapped_relations (their type, or what they link), lacking_relation_RAW (those whose type no
    row names), between_sentences (of concepts, those that no sentence mentions together),
    invalid_pairs (modifiers that the main entity cannot have), mapped_TYPE_MODIFIER,
    unmapped_attributes, attributes_without_cue.
  """
  mapped, counts, pairs = [], Counter(), mapping.schema.modifiers
  lacking, used = Counter(), {*mapping.relations, *(
    raw for rule in mapping.relations.values() for raw in rule.modifiers)}
  for document in documents:
    kept, spans = {}, {}  # index of a raw span -> of its new one; new span -> its index
    for i, span in enumerate(document.spans):
      if span.type in mapping.entities:
        new = span._replace(type=mapping.entities[span.type])
        counts[f'mapped_{new.type}'] += 1
        counts['duplicate'] += new in spans
        kept[i] = spans.setdefault(new, len(spans))
      else:
        lacking[span.type] += 1
    counts.update(entities=len(spans), unmapped=len(document.spans) - len(kept))
    entities, relations = list(spans), []
    for main, modifier, kinds in (
        *_linked(document, mapping, kept, counts), *_cued(document, mapping, kept, counts)):
      of = entities[kept[main]].type
      used.add(modifier.type)
      kind = first_of(pairs, of, kinds)
      if kind is None:
        counts['invalid_pairs'] += 1
        continue
      counts[f'mapped_{of}_{kind}'] += 1
      tail = spans.setdefault(modifier._replace(type=kind), len(spans))
      relations.append(Relation(kind, kept[main], tail))
    relations = tuple(dict.fromkeys(relations))
    counts['relations'] += len(relations)
    mapped.append(document._replace(spans=tuple(spans), relations=relations))
  counts.update({
    f'{LACKING}{raw}': count for raw, count in lacking.items() if raw not in used})
  return mapped, counts


def _linked(document: Document, mapping: Mapping, kept, counts: Counter):
  """Yields (index of the main entity's raw span, raw modifier, its types) of each relation."""
  ends: dict[tuple[str, int], list[int]] = {}
  for link in document.relations:
    ends.setdefault((link.type, link.head), []).append(link.tail)
  by_sentence = {kind for kind, _, _ in document.linked
                 if mapping.relations.get(kind, Rule({})).by_sentence}
  links = [link for link in document.relations if link.type not in by_sentence]
  for link in (*links, *_in_sentences(document, by_sentence, counts)):
    if link.head == link.tail:
      continue  # an attribute
    rule = mapping.relations.get(link.type)
    if rule is None:
      counts['unmapped_relations'] += 1
      counts[f'{LACKING_RELATION}{link.type}'] += 1
      continue
    mains, other = [link.head], link.tail
    if rule.main == 'tail':
      mains, other = [link.tail], link.head
    elif rule.sibling:
      mains = ends.get((rule.sibling, link.head), [])
    modifier = document.spans[other]
    kinds = rule.modifiers.get(modifier.type) or rule.modifiers.get('')
    mains = [main for main in mains if main in kept] if kinds else []
    counts['unmapped_relations'] += not mains
    for main in mains:
      yield main, modifier, kinds


def _in_sentences(document: Document, kinds: set[str], counts: Counter) -> Iterator[Relation]:
  """Yields relations of concepts, of these types, between all their mentions in one sentence."""
  if not kinds:
    return
  sentences = note_sentences(document)
  starts = [start for start, _ in sentences]

  def sentence(span: Span) -> int | None:
    number = bisect_right(starts, span.start) - 1
    return number if number >= 0 and span.end <= sentences[number][1] else None

  places = [sentence(span) for span in document.spans]
  for kind, heads, tails in document.linked:
    if kind in kinds:
      found = [(head, tail) for head, tail in product(heads, tails)
               if head != tail and places[head] is not None and places[head] == places[tail]]
      counts['between_sentences'] += not found
      for head, tail in found:
        yield Relation(kind, head, tail)


def _cued(document: Document, mapping: Mapping, kept, counts: Counter):
  """Yields as `_linked` does, of each attribute: its nearest cue, one inside the entity first."""
  attributes = [link for link in document.relations if link.head == link.tail]
  if not attributes:
    return
  sentences = note_sentences(document)
  starts = [start for start, _ in sentences]
  for link in attributes:
    cues = mapping.attributes.get(link.type)
    if not cues or link.head not in kept:
      counts['unmapped_attributes'] += 1
      continue
    span = document.spans[link.head]
    number = max(bisect_right(starts, span.start) - 1, 0)
    first, last = sentences[number] if sentences else (0, 0)
    places = [cue.span() for cue in cues.words.finditer(document.text, first, last)]
    if not places:
      counts['attributes_without_cue'] += 1
      continue
    nearest = min(places, key=lambda cue: max(span.start - cue[1], cue[0] - span.end, -1))
    yield link.head, Span(*nearest, ''), (cues.modifier,)

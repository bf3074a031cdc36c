"""Relation extraction as text rewriting: mark one main entity, get its modifiers back.

One example is a (sentence, main entity) pair. The input marks the main entity only, the target
marks only its modifiers, with the tags of `data/tasks.py`; a main entity without modifiers has
the plain sentence as target. `tasks.render` and `tasks.parse` serve both tasks. Provenance of
the task, its 16 types and 22 valid pairs: METHOD section 5.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence

from fedmedjax.data import tasks
from fedmedjax.data.sentences import flat, split_sentences, trimmed
from fedmedjax.types import ENTITY_TYPES, MODIFIER_TYPES, Document, Example, InputError, Span

# Per type: an example that shows the markup, and a definition, short as in `data/tasks.py`.
_GUIDE = {
  'severity': ('severe', 'how bad a problem is'),
  'condition': ('on exertion', 'the circumstance in which a problem shows'),
  'uncertain': ('possible', 'doubt that a problem is there'),
  'subject': ('mother', 'who has the problem, if not the patient'),
  'bodyloc': ('left knee', 'the part of the body'),
  'course': ('worsening', 'how a problem develops'),
  'temporal': ('since Monday', 'when, or since when'),
  'negation': ('denies', 'that it is absent or was not done'),
  'strength': ('25 mg', 'the amount of substance in one unit of a drug'),
  'dosage': ('2 puffs', 'the amount to take at once'),
  'duration': ('for 10 days', 'how long a drug is taken'),
  'form': ('tablet', 'the form of a drug'),
  'frequency': ('twice daily', 'how often a drug is taken'),
  'route': ('by mouth', 'how a drug is given'),
  'labvalue': ('7.2', 'the result of a test'),
  'reference_range': ('4-11', 'the normal range of a test'),
}


def modifier_types(types: Sequence[str]) -> tuple[str, ...]:
  """The modifiers that a main entity of any of `types` can have, in the order of the guide."""
  allowed = {modifier for name in types for modifier in MODIFIER_TYPES[name]}
  return tuple(name for name in _GUIDE if name in allowed)


def instruction(types: Sequence[str]) -> str:
  """The prompt in front of every example of a site that annotates modifiers of `types`.

  Raises InputError when a type is unknown or none is given.
  """
  unknown = [name for name in types if name not in ENTITY_TYPES]
  if unknown or not types:
    raise InputError(
      f'entity types {tuple(types)!r}: some of {", ".join(ENTITY_TYPES)} are allowed')
  asked = modifier_types(types)
  return '\n'.join([
    '### Task:',
    'One entity of the clinical text is tagged. Copy the text word for word without that tag and '
    'put a tag around every word or phrase that modifies this entity, as in:',
    *(f'<span class="{name}">{_GUIDE[name][0]}</span>' for name in asked),
    '### Definitions:',
    *(f'{name}: {_GUIDE[name][1]}' for name in asked),
    tasks.INPUT_HEADING,
  ])


def relation_examples(
  document: Document, types: Sequence[str]
) -> tuple[list[Example], Counter]:
  """One example per main entity that a sentence holds whole, in the order of the note.

  Args:
    document: the note; a relation's head is the main entity, its tail the modifier.
    types: the types of main entities whose modifiers were annotated.

  Returns:
    The examples, `entities` being the modifiers, and counts: mains, modifiers (kept), and
    dropped: crossing (in another sentence than the main entity, or in none as a whole), nested
    (overlapping a longer modifier), invalid_pairs (a type that the main entity cannot have).
  """
  text, sentences = document.text, split_sentences(document.text)
  starts = [start for start, _ in sentences]
  tails: dict[int, list[Span]] = {}
  for relation in document.relations:
    modifier = document.spans[relation.tail]._replace(type=relation.type)
    tails.setdefault(relation.head, []).append(modifier)

  def place(span: Span) -> tuple[int, Span] | None:
    """The sentence that holds the span, and the span with offsets into it."""
    start, end = trimmed(text, span.start, span.end)
    number = bisect_right(starts, start) - 1
    if start == end or end > sentences[number][1]:
      return None
    return number, Span(start - starts[number], end - starts[number], span.type)

  found, counts = [], Counter()
  for index, span in enumerate(document.spans):
    main = place(span) if span.type in types else None
    if main is None:
      continue
    number, span = main
    modifiers = []
    for tail in tails.get(index, ()):
      if tail.type not in MODIFIER_TYPES[span.type]:
        counts['invalid_pairs'] += 1
        continue
      at = place(tail)
      if at is None or at[0] != number:
        counts['crossing'] += 1
      else:
        modifiers.append(at[1])
    kept = flat(list(dict.fromkeys(modifiers)))
    counts.update(mains=1, modifiers=len(kept), nested=len(modifiers) - len(kept))
    start, end = sentences[number]
    found.append(Example(document.name, start, text[start:end], tuple(kept), span))
  found.sort(key=lambda example: (example.start, example.main))
  return found, counts

"""One damage in a right answer, at every place there is: no entity elsewhere is lost.

Sentences with four entities and more come from the synthetic cohorts, some of each style of note;
FEDMEDJAX_FUZZ is the number of sentences of each, by default one.
"""

import itertools
import json
import os
import random
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from fedmedjax.data.answers.align import fold, inside_word
from fedmedjax.data.sentences import sentence_examples
from fedmedjax.data.synthetic.cohorts import COHORTS, generate_cohort
from fedmedjax.data.tasks import STYLES
from fedmedjax.types import ENTITY_TYPES, Example, Span

EACH = int(os.environ.get('FEDMEDJAX_FUZZ', 0)) or 1
OPEN, CLOSE = '<span class="test">', '</span>'
MADE_UP = ('The <span class="problem">plague</span> is here, for which <span class="drug">garlic'
           '</span> was given.')


class Damage(NamedTuple):
  """A damaged answer. `spared`: the entities that it has whole, outside of the damaged place."""

  answer: str
  spared: list[Span]


def sentences() -> list[Example]:
  """Short ones with many entities, which leave least room for damage that harms nothing."""
  found = []
  for name in COHORTS:
    notes = generate_cohort(name, train_notes=12, test_notes=12)
    examples = [
      example for note in (*notes.train, *notes.test)
      for example in sentence_examples(note, ENTITY_TYPES)[0]
      if len(example.entities) >= 4 and 50 <= len(example.text) <= 170]
    random.Random(name).shuffle(examples)
    found += examples[:EACH]
  return found


SENTENCES = sentences()


def pieces(example: Example) -> list[tuple[str, Span | None]]:
  """The text as words, marks, blanks and entities."""
  found, at = [], 0
  for span in (*example.entities, None):
    end = span.start if span else len(example.text)
    found += [(part, None) for part in re.findall(r'\w+|\s+|[^\w\s]', example.text[at:end])]
    if span:
      found.append((example.text[span.start:span.end], span))
      at = span.end
  return found


def tagged(parts: list[tuple[str, Span | None]]) -> str:
  return ''.join(
    f'<span class="{span.type}">{words}</span>' if span else words for words, span in parts)


def without(example: Example, *lost: Span | None) -> list[Span]:
  return [span for span in example.entities if span not in lost]


# --- markup: name -> damages of an example --------------------------------------------------------


def cut_off(example: Example, rng) -> Iterator[Damage]:
  """After every character."""
  answer, at, ends = tagged(pieces(example)), 0, []
  for span in example.entities:
    at = answer.index(CLOSE, at) + len(CLOSE)
    ends.append((at, span))
  for end in range(len(answer)):
    yield Damage(answer[:end], [span for at, span in ends if at <= end])


def put_in(*inserted: str):
  """At every character of the text, in an entity or between two."""

  def damages(example: Example, rng) -> Iterator[Damage]:
    parts = pieces(example)
    for i, (words, span) in enumerate(parts):
      for at, new in itertools.product(range(len(words)) if span is None else (
          0, *range(1, len(words), 3)), inserted):
        # What stands before an entity stands between entities; in it, it is the damaged place.
        if span and not at:
          changed = [*parts[:i], (new, None), *parts[i:]]
        else:
          changed = [*parts[:i], (words[:at] + new + words[at:], span), *parts[i + 1:]]
        yield Damage(tagged(changed), without(example, span if at else None))
    yield from (Damage(tagged(parts) + new, without(example)) for new in inserted)

  return damages


def unclosed(example: Example, rng) -> Iterator[Damage]:
  """An entity's end without its tag, or with half of one."""
  parts = pieces(example)
  for i, (words, span) in enumerate(parts):
    for half in ('', '<', '</', '</span', '<span>') if span else ():
      broken = f'<span class="{span.type}">{words}{half}'
      yield Damage(tagged([*parts[:i], (broken, None), *parts[i + 1:]]), without(example, span))


def nested(example: Example, rng) -> Iterator[Damage]:
  """Another tag around an entity and around two neighbours, and around a word within one."""
  parts = pieces(example)
  places = [i for i, (_, span) in enumerate(parts) if span]
  for first, last in itertools.chain(zip(places, places, strict=True), itertools.pairwise(places)):
    around = [*parts[:first], (OPEN, None), *parts[first:last + 1], (CLOSE, None),
              *parts[last + 1:]]
    yield Damage(tagged(around), without(example))
  for i in places:
    words, span = parts[i]
    for word in re.finditer(r'\w+', words):
      inner = words[:word.start()] + OPEN + word[0] + CLOSE + words[word.end():]
      yield Damage(tagged([*parts[:i], (inner, span), *parts[i + 1:]]), without(example, span))


def reordered(example: Example, rng) -> Iterator[Damage]:
  """Beginning and end swapped at every place; entities in each other's places, or all shuffled."""
  parts = pieces(example)
  for i in range(1, len(parts)):
    yield Damage(tagged([*parts[i:], (' ', None), *parts[:i]]), without(example))
  places = [i for i, (_, span) in enumerate(parts) if span]
  orders = [{a: b, b: a} for a, b in itertools.combinations(places, 2)]
  orders += [dict(zip(places, rng.sample(places, len(places)), strict=True)) for _ in range(4)]
  for order in orders:
    swapped = [parts[order.get(i, i)] for i in range(len(parts))]
    yield Damage(tagged(swapped), without(example))


def made_up(example: Example, rng) -> Iterator[Damage]:
  """A sentence of nobody's, or another of the notes, with all of its tags, before and after."""
  whole, others = tagged(pieces(example)), [one for one in SENTENCES if one is not example]
  for other in (MADE_UP, *(tagged(pieces(one)) for one in others)):
    for joint in (' ', '\n', '\n### Output Text:\n'):
      yield Damage(other + joint + whole, without(example))
      yield Damage(whole + joint + other, without(example))


def changed_words(change):
  """One piece after the other, then all at once: change(piece) -> what stands for it."""

  def damages(example: Example, rng) -> Iterator[Damage]:
    parts = pieces(example)
    for i, (words, span) in enumerate(parts):
      if change(words) != words:
        yield Damage(
          tagged([*parts[:i], (change(words), span), *parts[i + 1:]]), without(example, span))

  return damages


def changed_everywhere(*changes):
  """What aligns with no cost: other letter case and other white space, also within entities."""

  def damages(example: Example, rng) -> Iterator[Damage]:
    for change in changes:
      yield Damage(tagged([(change(words), span) for words, span in pieces(example)]),
                   without(example))

  return damages


MARKUP = {
  'cut off': cut_off,
  'stray tags': put_in(CLOSE, OPEN, '<span>', OPEN + CLOSE, '</ span >', CLOSE + CLOSE),
  'stray characters': put_in('<', 'x', '. ', '\n'),
  'unclosed': unclosed,
  'nested': nested,
  'reordered': reordered,
  'made up': made_up,
  'dropped': changed_words(lambda words: ''),
  'repeated': changed_words(lambda words: words + ' ' + words),
  'other words': changed_words(lambda words: 'xyz' if words.isalnum() else ';'),
  'other case and blanks': changed_everywhere(
    str.upper, str.title, lambda words: words.replace(' ', '\n'),
    lambda words: words.replace(' ', '\u00a0')),
  'wider blanks': changed_everywhere(
    lambda words: words.replace(' ', '  ') if words.isspace() else words),
  'other marks': changed_everywhere(
    lambda words: '' if re.fullmatch(r'[^\w\s]', words) else words,
    lambda words: f' {words} ' if re.fullmatch(r'[^\w\s]', words) else words),
  'empty': lambda example, rng: (
    Damage(answer, []) for answer in ('', ' ', '\n', CLOSE, OPEN, OPEN + CLOSE, '<')),
}


# --- lists ----------------------------------------------------------------------------------------


def entries(example: Example) -> list[str]:
  return [STYLES['json'].write(example.text, (span,))[1:-1] for span in example.entities]


def listed_cut_off(example: Example, rng) -> Iterator[Damage]:
  answer, at, ends = '[' + ', '.join(entries(example)) + ']', 1, []
  for entry, span in zip(entries(example), example.entities, strict=True):
    ends.append((at + len(entry), span))
    at += len(entry) + 2
  for end in range(len(answer)):
    yield Damage(answer[:end], [span for at, span in ends if at <= end])


def listed_characters(*inserted: str):
  """Every character dropped, or something put in before it."""

  def damages(example: Example, rng) -> Iterator[Damage]:
    listed = entries(example)
    for i, entry in enumerate(listed):
      for at, new in itertools.product(range(len(entry)), (None, *inserted)):
        broken = entry[:at] + entry[at + 1:] if new is None else entry[:at] + new + entry[at:]
        yield Damage('[' + ', '.join([*listed[:i], broken, *listed[i + 1:]]) + ']',
                     without(example, example.entities[i]))

  return damages


def listed_between(*inserted: str):
  """In the place of every comma and bracket."""

  def damages(example: Example, rng) -> Iterator[Damage]:
    listed = entries(example)
    for i, new in itertools.product(range(len(listed) + 1), inserted):
      joints = ['[', *[', '] * (len(listed) - 1), ']']
      joints[i] = new
      yield Damage(''.join(itertools.chain.from_iterable(
        itertools.zip_longest(joints, listed, fillvalue=''))), without(example))

  return damages


def listed_others(example: Example, rng) -> Iterator[Damage]:
  """Entries made up, of other sentences, nested ones, and other things, at every place."""
  listed = entries(example)
  mine = {fold(example.text[s.start:s.end]) for s in example.entities}
  others = [entry for one in SENTENCES for entry, span in zip(
    entries(one), one.entities, strict=True) if fold(one.text[span.start:span.end]) not in mine]
  shown = STYLES['json'].shown
  others = [*rng.sample(others, min(6, len(others))), shown('problem', 'plague'), 'null', '7', '{}',
            shown('drug', ''), '{"entity": "drug"}', '["aspirin"]',
            f'{{"entity": "drug", "text": {shown("drug", "plague")}}}']
  for i, new in itertools.product(range(len(listed) + 1), others):
    # Words of another sentence that stand in this one by chance may take an entity's place.
    words = json.loads(new).get('text', '') if new.startswith('{"') else ''
    if not isinstance(words, str) or not words or fold(words) not in fold(example.text):
      yield Damage('[' + ', '.join([*listed[:i], new, *listed[i:]]) + ']', without(example))


def listed_anew(example: Example, rng) -> Iterator[Damage]:
  """Entries dropped, doubled, swapped, shuffled."""
  listed = entries(example)
  for i, entry in enumerate(listed):
    yield Damage('[' + ', '.join(listed[:i] + listed[i + 1:]) + ']',
                 without(example, example.entities[i]))
    yield Damage('[' + ', '.join([*listed, entry]) + ']', without(example))
    yield Damage('[' + ', '.join([entry, *listed]) + ']', without(example))
  for a, b in itertools.combinations(range(len(listed)), 2):
    swapped = listed.copy()
    swapped[a], swapped[b] = swapped[b], swapped[a]
    yield Damage('[' + ', '.join(swapped) + ']', without(example))
  yield Damage('[' + ', '.join(reversed(listed)) + ']', without(example))


def listed_words(*changes):
  """The words of one entry after the other changed so that they still stand in the sentence."""

  def damages(example: Example, rng) -> Iterator[Damage]:
    for change in changes:
      yield Damage(json.dumps([
        {'entity': s.type, 'text': change(example.text[s.start:s.end])} for s in example.entities]),
        without(example))

  return damages


LISTS = {
  'cut off': listed_cut_off,
  'characters': listed_characters('"', '{', '\\'),
  'between': listed_between('', ' ', '\n', ']', '}', '{', ', ,', '}, {', '```', 'Then: ', '"', "'"),
  'others': listed_others,
  'anew': listed_anew,
  'other case and blanks': listed_words(
    str.upper, str.lower, lambda words: f' {words} ', lambda words: words.replace(' ', '\n')),
  'in and after other text': lambda example, rng: (
    Damage(before + f'[{", ".join(entries(example))}]' + after, without(example))
    for before, after in itertools.product(
      ('', 'Here you are: ', '```json\n', '[]\n', '[', '{"entities": '),
      ('', ' Anything else?', '\n```', '\n[{"entity": "drug", "text": "garl', ']]', '}'))),
  'empty': lambda example, rng: (
    Damage(answer, []) for answer in ('', ' ', '[', ']', '[]', '{}', '[{}]', 'null', '"')),
}


def occurrences(words: str, text: str) -> int:
  """How often a list's words can stand in the text, as whole words."""
  pattern, inside = r'\s+'.join(map(re.escape, fold(words).split())), inside_word(text)
  return sum(not inside[found.start(1)] and not inside[found.end(1)]
             for found in re.finditer(f'(?=({pattern}))', fold(text)))


DAMAGES = [*itertools.product(['markup'], MARKUP), *itertools.product(['json'], LISTS)]


@pytest.mark.parametrize(('style', 'name'), DAMAGES)
def test_a_damage_costs_no_entity_elsewhere(style, name):
  tried = 0
  for example in SENTENCES:
    rng = random.Random(example.text)
    damages = (MARKUP if style == 'markup' else LISTS)[name]
    for answer, spared in damages(example, rng):
      tried += 1
      found = STYLES[style].parse(answer, example.text, ENTITY_TYPES).spans
      assert all(a.end <= b.start for a, b in itertools.pairwise(found))
      for span in spared:
        words = example.text[span.start:span.end]
        if style == 'markup' or occurrences(words, example.text) == 1:
          assert span in found, (example.text, answer, words, span)
        else:  # a list does not say which
          assert (fold(words), span.type) in {
            (fold(example.text[s.start:s.end]), s.type) for s in found}, (
              example.text, answer, words)
  assert tried >= len(SENTENCES)

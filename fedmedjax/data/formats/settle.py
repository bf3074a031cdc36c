"""The place of every annotation, where its offsets and the words that it quotes may disagree.

All readers of formats with offsets hand their documents to `settle`. Where offsets do not lead to
the quoted words, one rule that explains all annotations is looked for (`offset_rules.py`). Without
one, an annotation goes to where its words stand, if that is one place only. What is left is
counted; a file with much of it is refused.
"""

from collections import Counter
from collections.abc import Sequence

from fedmedjax.data.formats.covering import covering_ranges
from fedmedjax.data.formats.offset_rules import RULES, Rule
from fedmedjax.data.formats.quoted_words import spaced
from fedmedjax.data.formats.quotes import SHARE, Draft, Evidence, Quote, choose_rules
from fedmedjax.types import Document, InputError

_Failure = tuple[Quote, str]  # an annotation, and what is where its offsets lead


def settle(
  drafts: Sequence[Draft], counts: Counter, rules: Sequence[Rule] = RULES, cased: bool = True
) -> list[Document]:
  """The documents, with every annotation at the place of the words that it quotes.

  What is set aside takes its relations with it. Counts that are changed: entities and relations
  lose what is set aside; text_mismatch (kept at its offsets, where the text has other words than
  are quoted), placed_by_words, and set aside: empty_mentions, out_of_range, unplaced (its words
  stand at several places), unanchored (relations); and those of `Rule.reasons`.

  Args:
    drafts: of a file, or of a folder that is read as a whole.
    counts: of the reader.
    rules: that may explain the offsets; the first is to take them as they are.
    cased: whether words are quoted with their capital letters.

  Raises:
    InputError: more than SHARE of the annotations, and more than one, are left without a place or
      with other words than they quote.
  """
  documents = [Evidence(draft, rules) for draft in drafts]
  placed, failures = [], []
  counts['text_mismatch'] += 0
  for one, rule in zip(documents, choose_rules(documents), strict=True):
    ranges, failed = _ranges(one, rule, counts, cased)
    pieces = [quote.pieces if ranges is one.straight else one.ranges(i, rule)
              for i, quote in enumerate(one.draft.quotes)]
    placed.append(_with_ranges(one.draft.document, ranges, counts)._replace(
      covering=covering_ranges(ranges, pieces, one.draft.layout.text)))
    failures += failed
  total = sum(len(draft.quotes) for draft in drafts)
  if len(failures) > 1 and len(failures) > SHARE * total:
    raise _refusal(failures, total)
  return placed


def _refusal(failures: Sequence[_Failure], total: int) -> InputError:
  quote, said = failures[0]
  path, line, ident = quote.place
  stated = ' and '.join(f'{start} to {end}' for start, end in quote.pieces)
  stated = f'offsets {stated}' if stated else 'place'
  return InputError(
    f'{path}:{line}: annotation {ident!r} has the {stated}, {said}; so it is with {len(failures)} '
    f'of {total} annotations, and no rule explains them (a shift, line ends, bytes, UTF-16); at '
    f'most {SHARE:.0%} are set aside')


def _ranges(
  one: Evidence, rule: Rule, counts: Counter, cased: bool
) -> tuple[list[tuple[int, int] | None], list[_Failure]]:
  """The range of each span of a document, None = set aside; and the failures."""
  quotes, text, plain = one.draft.quotes, one.draft.layout.text, one.rules[0]
  if one.straight is not None and rule == plain:
    return one.straight, []
  numbers = range(len(quotes))
  places = [one.ranges(i, rule) for i in numbers]
  agreed = [one.agrees(i, rule) for i in numbers]
  known = [] if all(agreed) else [i for i in numbers if one.words[i] and one.standing(i)]
  inside = [i for i in known if places[i]]
  # Whether offsets that lead to other words are slips, and the others can be relied on.
  trusted = not known or 0 < (1 - SHARE) * len(inside) <= sum(agreed[i] for i in inside)
  by_words = {} if all(agreed) else _by_words(one, places, agreed, trusted)
  ranges, failures = [], []
  for i, (quote, found) in enumerate(zip(quotes, places, strict=True)):
    actual = ' '.join(text[start:end] for start, end in found)
    here = (min(start for start, _ in found), max(end for _, end in found)) if found else None
    said = f'where the text has {_short(actual)} and not {_short(quote.words)}' if found else (
      f'which is no range of its text of {len(text)} characters')
    if found and (agreed[i] or not one.words[i]):
      if rule != plain and found != one.ranges(i, plain):
        counts.update(rule.reasons())
      counts['text_mismatch'] += agreed[i] and cased and spaced(actual) != spaced(quote.words)
    elif i in by_words:
      here = by_words[i]
      counts['placed_by_words'] += 1
    elif found and trusted and not one.standing(i):
      counts['text_mismatch'] += 1
      failures.append((quote, said))
    elif quote.pieces and all(start == end for start, end in quote.pieces):
      here = None
      counts['empty_mentions'] += 1
    else:
      here = None
      counts['unplaced' if found else 'out_of_range'] += 1
      failures.append((quote, said))
    ranges.append(here)
  return ranges, failures


def _short(words: str) -> str:
  return repr(words if len(words) <= 40 else f'{words[:40]}...')


def _by_words(one: Evidence, places, agreed, trusted: bool) -> dict[int, tuple[int, int]]:
  """The ranges of quotes whose words stand at one place only, or at one between their neighbours.

  Where offsets can be relied on, a range that the text has not is a slip, and has no place.
  """
  whole = len(one.draft.layout.text)
  starts = [quote.pieces[0][0] if quote.pieces else None for quote in one.draft.quotes]
  wanted = [i for i, right in enumerate(agreed)
            if not right and one.words[i] and (places[i] or not trusted)]
  chosen = {i: one.standing(i)[0] for i in wanted if len(one.standing(i)) == 1}
  known = [(starts[i], found[0][0]) for i, found in enumerate(places) if agreed[i]]
  known += [(starts[i], place[0]) for i, place in chosen.items() if starts[i] is not None]
  for i in wanted:
    if i not in chosen and starts[i] is not None:
      first = max((at for start, at in known if start < starts[i]), default=-1)
      last = min((at for start, at in known if start > starts[i]), default=whole)
      between = [place for place in one.standing(i) if first < place[0] < last]
      if len(between) == 1:
        chosen[i] = between[0]
  return chosen


def _with_ranges(
  document: Document, ranges: Sequence[tuple[int, int] | None], counts: Counter
) -> Document:
  """The document with its spans at these ranges, without those of None and their relations."""
  kept = [i for i, place in enumerate(ranges) if place]
  index = {old: new for new, old in enumerate(kept)}
  spans = tuple(document.spans[i]._replace(start=ranges[i][0], end=ranges[i][1]) for i in kept)
  lost = [link for link in document.relations if not {link.head, link.tail} <= index.keys()]
  relations = tuple(link._replace(head=index[link.head], tail=index[link.tail])
                    for link in document.relations if {link.head, link.tail} <= index.keys())
  if len(kept) < len(ranges):
    counts['entities'] -= len(ranges) - len(kept)
    # A relation to itself is an attribute, which is not counted among them.
    counts['relations'] -= sum(link.head != link.tail for link in lost)
    counts['unanchored'] += len(lost)
  linked = tuple(
    (kind, *(tuple(index[i] for i in end if i in index) for end in ends))
    for kind, *ends in document.linked)
  return document._replace(spans=spans, relations=relations, linked=linked)

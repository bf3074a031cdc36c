"""Relation extraction: given one main entity of a sentence, its modifiers.

One example is a (sentence, main entity) pair. The input marks the main entity only, the target
marks only its modifiers; a main entity without modifiers has the plain sentence, or an empty list,
as target. The prompts of both tasks are in `tasks.py`. Provenance of the task, and the paper's
16 types and 22 valid pairs: docs/methods.md.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence

from fedmedjax.data.sentences import flat, note_sentences, trimmed
from fedmedjax.data.sources import source_of
from fedmedjax.types import Document, Example, InputError, SiteCorpus, Span


def annotated(corpus: SiteCorpus) -> dict[str, tuple[str, ...]]:
  """{entity type: its modifier types} that a site annotated, of its schema's pairs.

  Entity types without any are left out. See `SiteCorpus.modifiers`.
  """
  pairs = corpus.modifiers
  if pairs is None:
    occurring = {
      (note.spans[link.head].type, link.type)
      for note in (*corpus.train, *corpus.test) for link in note.relations}
    pairs = {
      main: tuple(kind for head, kind in occurring if head == main) for main, _ in occurring}
  valid = {
    main: tuple(kind for kind in kinds if kind in pairs.get(main, ()))
    for main, kinds in corpus.schema.modifiers.items() if main in corpus.types}
  return {main: kinds for main, kinds in valid.items() if kinds}


def annotated_by_all(corpora: Sequence[SiteCorpus]) -> dict[str, tuple[str, ...]]:
  """{entity type: its modifier types} that each of `corpora` annotated."""
  first, *others = map(annotated, corpora)
  common = {
    main: tuple(kind for kind in kinds if all(kind in other.get(main, ()) for other in others))
    for main, kinds in first.items()}
  return {main: kinds for main, kinds in common.items() if kinds}


def asked_like(cohort: SiteCorpus, trained: Sequence[SiteCorpus]) -> SiteCorpus:
  """An external cohort with the relation prompt of a site that trains: the one that asks for most.

  A prompt made from the cohort's own annotation would tell the model what occurs there, and is not
  what it was trained on. The cohort is judged by the pairs that it and that site annotated. Where
  no site that trains annotated modifiers it stays as it is.
  """
  prompted = max(map(annotated, trained), key=lambda of: sum(map(len, of.values())), default={})
  if not prompted:
    return cohort
  return cohort._replace(prompted=prompted, modifiers={
    main: tuple(kind for kind in kinds if kind in prompted.get(main, ()))
    for main, kinds in annotated(cohort).items()})


def asked_of_trained(server: SiteCorpus, trained: Sequence[SiteCorpus]) -> SiteCorpus:
  """The server's validation notes, asked as an external cohort for what some site trains.

  Types that no site annotated are left out: how an adapter answers for them says nothing of it.

  Raises:
    InputError: it annotates none of the types that are trained.
  """
  if not server.types:  # rows of a study's own task
    return server
  known = {name for site in trained for name in site.types}
  types = tuple(name for name in server.types if name in known)
  if not types:
    raise InputError(
      f'config.data.server_validation={server.name!r}: it annotates {", ".join(server.types)}, '
      f'and the sites that train {", ".join(sorted(known))}; a common type is needed')
  return asked_like(server._replace(types=types), trained)


def relation_examples(
  document: Document, asked: Mapping[str, tuple[str, ...]]
) -> tuple[list[Example], Counter]:
  """One example per main entity that a sentence holds whole, in the order of the note.

  Args:
    document: the note; a relation's head is the main entity, its tail the modifier.
    asked: {entity type: modifier types} that the site is asked for; entities of other types are no
      main entities.

  Returns:
    The examples, `entities` being the modifiers, and counts: mains, modifiers (kept), and
    dropped: crossing_mains (main entities that no sentence holds whole), crossing (modifiers in
    another sentence than the main entity, or in none as a whole), nested (overlapping another
    modifier, see `sentences.flat`), invalid_pairs (a type that is not asked of the main entity).
  """
  text, sentences, broken = document.text, note_sentences(document), set(document.covering)
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

  examples, counts = [], Counter()
  for index, span in enumerate(document.spans):
    if span.type not in asked:
      continue
    main = place(span)
    if main is None:
      counts.update(crossing_mains=1, crossing=sum(
        tail.type in asked[span.type] for tail in tails.get(index, ())))
      continue
    number, span = main
    modifiers, covering = [], set()
    for tail in tails.get(index, ()):
      if tail.type not in asked[span.type]:
        counts['invalid_pairs'] += 1
        continue
      at = place(tail)
      if at is None or at[0] != number:
        counts['crossing'] += 1
      else:
        modifiers.append(at[1])
        if tail[:2] in broken:
          covering.add(at[1])
    kept = flat(list(dict.fromkeys(modifiers)), covering)
    counts.update(mains=1, modifiers=len(kept), nested=len(modifiers) - len(kept))
    start, end = sentences[number]
    examples.append(Example(
      document.name, start, text[start:end], tuple(kept), span, source_of(document)))
  examples.sort(key=lambda example: (example.start, example.main))
  return examples, counts

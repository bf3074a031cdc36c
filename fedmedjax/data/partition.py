"""Pooled notes dealt out to sites of our own making, for studies of heterogeneity.

A partitioner maps (notes, types, number of sites, strength, rng) to i[D], the site of each of D
notes, where the notes of one source are put together as one. None leaves a site empty (nor without
any entity, see `each_with_entities`); all are functions of the rng's seed. Sites share the test
notes of the pool, so that runs with unlike partitions are scored alike. Letters: S sites, D notes,
T entity types.
"""

from collections.abc import Callable, Sequence

import numpy as np

from fedmedjax.data.damage import CLEAN, CORRUPTIONS, Damage, corrupted_sites, incomplete
from fedmedjax.data.pieces import sentences_of
from fedmedjax.data.relations import annotated_by_all
from fedmedjax.data.row_mixes import row_types, with_target
from fedmedjax.data.shares import apportioned, in_turn
from fedmedjax.data.sources import registered, source_of
from fedmedjax.data.statistics import divergence, word_divergence
from fedmedjax.data.styles import by_style
from fedmedjax.data.type_mixes import by_types, type_counts
from fedmedjax.types import Document, InputError, SiteCorpus, Skew


def iid(notes, types, sites, strength, rng, room=None) -> np.ndarray:
  """Sites alike: notes stratified by their most frequent entity type are dealt out in turn.

  `room` is how many each site gets, i[S]; None = equally many.
  """
  del strength
  stratum = type_counts(notes, types).argmax(1)
  order = np.lexsort((rng.random(len(notes)), stratum))
  dealt = np.empty(len(notes), int)
  dealt[order] = np.arange(len(notes)) % sites if room is None else in_turn(room)
  return dealt


def by_quantity(notes, types, sites, strength, rng) -> np.ndarray:
  """Sizes by a power law: site k = 1..S holds a share proportional to k^-strength of the notes.

  Which site has which size is drawn, and so are its notes. Every site has at least one.
  """
  del types
  shares = np.arange(1, sites + 1, dtype=float) ** -strength
  sizes = 1 + apportioned(shares, len(notes) - sites)
  return rng.permutation(np.repeat(rng.permutation(sites), sizes))


def each_with_entities(
  dealt: np.ndarray, holds: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """The deal after the fewest swaps that give every site a note with an entity to learn.

  Small strengths and many sites leave some sites without any entity: they would teach to mark
  nothing. A swap keeps the sizes, and takes no site's last note with an entity.

  Args:
    dealt: i[D], site of each note.
    holds: bool[S, D], whether a note holds an entity of a type that a site annotates.
    rng: draws the swapped notes.

  Returns:
    i[D].

  Raises:
    InputError: too few notes hold an entity.
  """
  dealt = dealt.copy()
  for site, useful in enumerate(holds):
    if useful[dealt == site].any():
      continue
    theirs = holds[dealt, np.arange(len(dealt))]  # does a note serve the site that has it?
    spare = useful & (~theirs | (np.bincount(dealt[theirs], minlength=len(holds))[dealt] > 1))
    if not spare.any():
      raise InputError(
        f'config.data.partition.sites={len(holds)}: {useful.sum()} of {len(dealt)} notes or '
        'sentences dealt out hold an entity, too few for each site to have one; lower it')
    taken, given = (rng.choice(np.flatnonzero(of)) for of in (spare, dealt == site))
    dealt[taken], dealt[given] = site, dealt[taken]
  return dealt


def annotated_types(
  types: Sequence[str], sites: int, strength: float, rng: np.random.Generator
) -> list[tuple[str, ...]]:
  """The types that each site annotates; each is left out with probability `strength`, 0 to 1.

  Every site annotates one type at least, and every type is annotated somewhere.
  """
  kept = rng.random((sites, len(types))) >= strength
  for site in np.flatnonzero(~kept.any(1)):
    kept[site, rng.integers(len(types))] = True
  for place in np.flatnonzero(~kept.any(0)):
    kept[rng.integers(sites), place] = True
  return [tuple(n for n, keep in zip(types, row, strict=True) if keep) for row in kept]


def _restricted(note: Document, types: Sequence[str]) -> Document:
  """The note with entities of `types` and their modifiers only, as a site of these types has it."""
  heads = {i for i, span in enumerate(note.spans) if span.type in types}
  relations = [r for r in note.relations if r.head in heads]
  kept = sorted(heads | {r.tail for r in relations})
  place = {old: new for new, old in enumerate(kept)}
  return note._replace(
    spans=tuple(note.spans[i] for i in kept),
    relations=tuple(r._replace(head=place[r.head], tail=place[r.tail]) for r in relations))


def annotating(corpus: SiteCorpus, types: Sequence[str]) -> SiteCorpus:
  """The corpus of a site that annotates only `types`."""
  return corpus._replace(
    types=tuple(types), train=tuple(_restricted(note, types) for note in corpus.train),
    test=tuple(_restricted(note, types) for note in corpus.test))


def _by_source(pool: Sequence[Sequence[Document]]) -> list[list[Document]]:
  """The notes of each source, in order; of several corpora where its name is a registered one."""
  groups: dict[tuple[int, str], list[Document]] = {}
  for place, notes in enumerate(pool):
    for note in notes:
      source = source_of(note)
      groups.setdefault((-1 if registered(source) else place, source), []).append(note)
  return list(groups.values())


def _each_sentence(pool: Sequence[Sequence[Document]]) -> list[list[Document]]:
  return [[sentence] for notes in pool for note in notes for sentence in sentences_of(note)]


def _together(notes: Sequence[Document]) -> Document:
  """The notes of a source as one, for a partitioner to look at; without relations."""
  if len(notes) == 1:
    return notes[0]
  spans, at = [], 0
  for note in notes:
    spans += [span._replace(start=span.start + at, end=span.end + at) for span in note.spans]
    at += len(note.text) + 1
  return Document(
    source_of(notes[0]), '\n'.join(note.text for note in notes), tuple(spans), ())


# Value of config.data.partition.unit -> what the notes of several corpora are dealt out as: lists
# of notes, or of sentences as notes, that stay together.
UNITS: dict[str, Callable] = {'note': _by_source, 'sentence': _each_sentence}
# Value of config.data.partition.kind -> partitioner of notes; 'labels' deals as 'iid' does and
# hides types.
KINDS: dict[str, Callable] = {
  'iid': iid, 'types': by_types, 'quantity': by_quantity, 'style': by_style, 'labels': iid}
# Kinds whose `strength` is a share, 0 to 1.
SHARES = ('style', 'labels')
# Kinds that deal as many notes to each site as they are told to; others have sizes of their own.
SIZED = ('iid', 'types', 'labels')


def partition(
  sources: Sequence[SiteCorpus],
  kind: str,
  *,
  unit: str,
  sites: int,
  strength: float,
  seed: int,
  sizes: Sequence[float] = (),
  damage: Damage = CLEAN,
  deal: Callable | None = None,
) -> tuple[list[SiteCorpus], Skew]:
  """Deals the training notes of all sources out to sites 'part_001', ..., without test notes.

  Args:
    sources: corpora that annotate the same types, or all of rows, whose targets then count as types
      (`row_mixes.py`). Of modifiers, sites are asked for those that all sources annotated: a note
      does not tell 'none there' from 'not looked for'.
    kind, unit: keys of `KINDS` and `UNITS`. Sentences of a source may come to several sites.
    sites: S.
    strength: of the skew, see the partitioners.
    seed: of all draws.
    sizes: share of the units that each site gets, f[S], of a kind in SIZED; () = by the kind.
    damage: the sites whose annotation is wrong; it does not change which note goes where, but that
      every site has an entity of a type that it annotates.
    deal: a partitioner in place of that of `kind`; what it deals is checked.

  Raises:
    InputError: sources that annotate unlike types or mean different things by them, or fewer notes
      (with an entity) than sites, or types to mix up where there is one.
  """
  _check_alike(sources, kind)
  rows = row_types(sources, kind, damage)
  types, modifiers = rows or sources[0].types, annotated_by_all(sources)
  units = UNITS[unit]([source.train for source in sources])
  notes = [_together([with_target(note, rows) for note in own] if rows else own) for own in units]
  _check_number(len(notes), sum(map(len, units)), unit, sites)
  rng, corruption = np.random.default_rng((seed, 0)), CORRUPTIONS[damage.corruption]
  room = {'room': _room(sizes, len(notes), unit)} if sizes else {}
  dealt = KINDS[kind](notes, types, sites, strength, rng, **room) if deal is None else (
    _checked_deal(deal(notes, types, sites, strength, rng), len(notes), sites, kind))
  asked = annotated_types(types, sites, strength, rng) if kind == 'labels' else [types] * sites
  broken = corrupted_sites(damage, types, sites, rng)
  called = [
    dict(zip(types, corruption.called(types) if site in broken else types, strict=True))
    for site in range(sites)]
  holds = np.stack([
    [names[t] in own for t in types] for names, own in zip(called, asked, strict=True)
  ]) @ type_counts(notes, types).T
  dealt = each_with_entities(dealt, holds > 0, rng)
  digits = max(3, len(str(sites)))
  parts = []
  for site in range(sites):
    own = [note for i in np.flatnonzero(dealt == site) for note in units[i]]
    if site in broken:
      own = [corruption.change(note, called[site]) for note in own]
    own = own if rows else [_restricted(note, asked[site]) for note in own]
    report = {'documents': len(own), 'corrupted': int(site in broken)}
    if site in damage.missing_sites:
      own, report['left_unannotated'] = _incomplete(
        own, asked[site], damage.missing, (seed, 1, site))
    parts.append(SiteCorpus(
      f'part_{site + 1:0{digits}}', () if rows else asked[site], tuple(own), (),
      report | {'entities': _entities(own, types)},
      # Mixed-up notes have lost their modifiers: asking for them would teach that there are none.
      modifiers if site not in broken or corruption.keeps_modifiers else {},
      sources[0].definitions, schema=sources[0].schema))
  held = [[notes[i] for i in np.flatnonzero(dealt == site)] for site in range(sites)] if rows else [
    part.train for part in parts]
  return parts, _skew(parts, held, types, asked, 0 if rows else sum(
    _entities(source.train, types) for source in sources) - _entities(notes, types))


def _skew(
  parts: Sequence[SiteCorpus], held: Sequence[Sequence[Document]], types: Sequence[str],
  asked: Sequence[Sequence[str]], crossing: int,
) -> Skew:
  """What came out; `held` are the notes of each part with entities of `types`."""
  counts = np.stack([type_counts(own, types).sum(0) for own in held])
  return Skew(
    tuple(len(part.train) for part in parts), divergence(counts),
    sum(map(len, asked)) / (len(parts) * len(types)),
    word_divergence([[note.text for note in part.train] for part in parts]), crossing)


def _entities(notes: Sequence[Document], types: Sequence[str]) -> int:
  """The number of entities of these types."""
  return sum(span.type in types for note in notes for span in note.spans)


def _incomplete(
  notes: list[Document], types: Sequence[str], share: float, seed: tuple[int, ...]
) -> tuple[list[Document], int]:
  """(the notes without a share of their entities and the modifiers of these, how many they are)."""
  left = [_restricted(note, types) for note in incomplete(
    notes, types, share, np.random.default_rng(seed))]
  return left, _entities(notes, types) - _entities(left, types)


def _check_number(units: int, notes: int, unit: str, sites: int) -> None:
  """Raises InputError when there are fewer units to deal out than sites."""
  if units < sites:
    joined = ' (those of a source counted once)' * (notes > units)
    raise InputError(
      f'config.data.partition.sites={sites}: there are {units} {unit}s of training notes'
      f'{joined} to deal out')


def _room(sizes: Sequence[float], units: int, unit: str) -> np.ndarray:
  """How many of the units each site gets, i[S]; InputError when one gets none."""
  room = apportioned(sizes, units)
  if not room.all():
    share = sizes[int(room.argmin())]
    raise InputError(
      f'config.data.partition.sizes={tuple(sizes)}: {share} of the {units} {unit}s that are dealt '
      'out is none; larger shares, or fewer sites, are allowed')
  return room


def _checked_deal(dealt, notes: int, sites: int, kind: str) -> np.ndarray:
  """A user's deal as i[notes]; InputError when it is none, or leaves a site empty."""
  dealt = np.asarray(dealt)
  if dealt.shape != (notes,) or dealt.dtype.kind not in 'iu':
    raise InputError(
      f'config.data.partition.kind={kind!r}: it gives {dealt.dtype}{list(dealt.shape)}; one '
      f'integer for each of {notes} notes is allowed')
  counts = np.bincount(dealt[(dealt >= 0) & (dealt < sites)], minlength=sites)
  if counts.sum() < notes or not counts.all():
    raise InputError(
      f'config.data.partition.kind={kind!r}: sites 0 to {sites - 1} are allowed, each with a note; '
      f'it gives {sorted(set(dealt.tolist()))}')
  return dealt


def asked_alike(sources: Sequence[SiteCorpus]) -> list[SiteCorpus]:
  """The pooled sites, asked in tests for the modifiers that their training parts were asked for."""
  common = annotated_by_all(sources)
  return [source._replace(modifiers=common) for source in sources]


def _check_alike(sources: Sequence[SiteCorpus], kind: str) -> None:
  """Raises InputError when notes of `sources` cannot be pooled."""
  first = sources[0]
  for source in sources:
    if bool(source.types) != bool(first.types):
      raise InputError(
        f'config.data.partition.kind={kind!r}: rows and notes cannot be pooled; '
        f'{(source if source.types else first).name} has notes, '
        f'{(first if source.types else source).name} rows')
    if set(source.types) != set(first.types):
      raise InputError(
        f'config.data.partition.kind={kind!r}: sites that annotate the same types can be pooled; '
        f'{first.name} has {", ".join(first.types)}, {source.name} {", ".join(source.types)} (of a '
        "folder, 'annotated' of its entry says which)")
    if source.definitions != first.definitions:
      raise InputError(
        f'config.data.partition.kind={kind!r}: sites whose types mean the same can be pooled; '
        f'those of {first.name} and {source.name} are defined differently in their mappings')

"""Which process reads, tokenises and packs the notes of which site, and what the others hear of it.

A process has the notes of the sites that its devices compute, and answers their test sentences. Of
the other sites it has outlines (`data/outlines.py`). Training notes that are tested on elsewhere
are found by hashes. Where notes are pooled and dealt out (config.data.partition), or shown in the
prompts of others (config.data.shots), every process reads all of them.
"""

import base64
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from fedmedjax.data.leaks import TextIndex, Traces, traces, without_traces
from fedmedjax.data.outlines import outline, restored
from fedmedjax.data.relations import annotated
from fedmedjax.data.site import SiteData
from fedmedjax.data.tasks import ask
from fedmedjax.experiment import meshes
from fedmedjax.runtime.processes import ALONE, Processes
from fedmedjax.types import Document, InputError, Schema, SiteCorpus


class Reading(NamedTuple):
  """Who reads what. `trained`, `tested` and `external` are numbers of processes, one a site."""

  processes: Processes = ALONE
  trained: tuple[int, ...] = ()
  tested: tuple[int, ...] = ()
  external: tuple[int, ...] = ()
  server: tuple[int, ...] = ()
  reads_all: bool = True     # every process reads all notes
  encodes_all: bool = True   # and tokenises them
  style: str = ''            # of answers
  labels: bool = False       # whether examples are those of a token classifier
  names: frozenset[str] | None = None  # sites whose notes are here; None = all

  def here(self, site: SiteData) -> bool:
    """Whether this process packs the site's examples and answers its test sentences."""
    return self.names is None or site.name in self.names

  def mine(self, owners: Sequence[int], site: int) -> bool:
    return self.reads_all or owners[site] == self.processes.index


def reading_of(config: ConfigDict, processes: Processes) -> Reading:
  """By config.mesh and config.data: neighbours by number are on one process."""
  if processes.count == 1:
    return Reading()
  if config.log.steps:
    raise InputError(
      f'config.log.steps=True: with {processes.count} processes only False is supported')
  data, mesh = config.data, meshes.mesh_of(config)
  dealt, number = bool(data.partition.kind), len(data.sites)
  trained = meshes.owners(
    mesh, data.partition.sites if dealt else number, config.fed.pooled)
  tested = [site * processes.count // number for site in range(number)] if dealt else trained
  return Reading(
    processes, tuple(trained), tuple(tested),
    # From the last process on, as the first has other things to do.
    tuple(-1 - site % processes.count + processes.count for site in range(len(data.external))),
    (0,) * bool(data.server_validation), dealt or bool(data.shots), bool(data.shots),
    config.data.style if config.fed.learner == 'lora' else 'markup', config.fed.learner != 'lora')


def check_read_alike(reading: Reading, corpora: Sequence[SiteCorpus]) -> None:
  """Raises InputError where processes that all read these notes have read unlike ones."""
  if reading.processes.count == 1:
    return
  texts = {corpus.name: repr((corpus.train, corpus.test)) for corpus in corpora}
  reading.processes.same('checksums of notes that all read', {
    name: blake2b(text.encode(errors='backslashreplace'), digest_size=8).hexdigest()
    for name, text in texts.items()}, 'the corpus of site {}'.format)


def known_corpora(
  reading: Reading, sites: list[SiteCorpus | None], external: list[SiteCorpus | None],
  server: list[SiteCorpus | None], schema: Schema,
) -> tuple[list[SiteCorpus], list[SiteCorpus], list[SiteCorpus]]:
  """The corpora as `unleaked` leaves them, those of other processes without their notes.

  Args:
    reading: by which they were read.
    sites, external, server: None in the place of each that another process reads.
    schema: of all.

  Raises:
    InputError: as `unleaked` and `unjudged`.
  """
  given = [(kind, number, corpus) for kind, corpora in (
    ('s', sites), ('e', external), ('v', server)) for number, corpus in enumerate(corpora)]
  own = {f'{kind}{number}': _told(corpus, corpus.train if kind == 'v' else corpus.test)
         for kind, number, corpus in given if corpus is not None}
  told = reading.processes.merged('types and hashes of notes', own)
  found = {key: _traces(one['traces']) for key, one in told.items()}
  names = {key: one['name'] for key, one in told.items()}
  tested = [(names[key], part) for key, part in found.items() if key[0] != 'v']
  judges = [(names[key], part) for key, part in found.items() if key[0] == 'v']
  index = TextIndex(found=found.values())

  def settled(kind: str, number: int, corpus: SiteCorpus | None) -> SiteCorpus:
    if corpus is None:
      return _without_notes(told[f'{kind}{number}'], schema)
    if kind == 'e':
      return corpus
    if kind == 's':
      return without_traces(corpus, [*tested, *judges], index, bool(judges))
    if not corpus.train:
      raise InputError(
        f'config.data.server_validation={corpus.name!r}: it has no training note, which the '
        "server's validation set would be made of")
    return without_traces(corpus._replace(test=()), tested, TextIndex(found=[
      part for _, part in tested]), False)

  out = {'s': [], 'e': [], 'v': []}
  for kind, number, corpus in given:
    out[kind].append(settled(kind, number, corpus))
  return out['s'], out['e'], out['v']


def _told(corpus: SiteCorpus, judged: Sequence[Document]) -> dict[str, Any]:
  found = traces(judged)
  return {
    'name': corpus.name, 'types': corpus.types, 'report': dict(corpus.report),
    'modifiers': annotated(corpus), 'definitions': corpus.definitions,
    'traces': found._replace(shingles=[
      base64.b64encode(one.tobytes()).decode() for one in found.shingles])}


def _traces(found: Sequence[Any]) -> Traces:
  keys, shingles, own, anywhere = found
  return Traces(
    keys, [np.frombuffer(base64.b64decode(one), np.uint64) for one in shingles], own, anywhere)


def _without_notes(told: dict[str, Any], schema: Schema) -> SiteCorpus:
  return SiteCorpus(
    told['name'], tuple(told['types']), (), (), told['report'],
    {main: tuple(kinds) for main, kinds in told['modifiers'].items()}, told['definitions'],
    schema=schema)


def known_sites(
  reading: Reading, what: str, corpora: Sequence[SiteCorpus], sites: Sequence[SiteData | None]
) -> tuple[SiteData, ...]:
  """All sites of a kind, those that other processes encode as outlines.

  Args:
    reading: by which they were encoded.
    what: they are, for errors.
    corpora: of all, with or without their notes.
    sites: None in the place of each that another process encodes.
  """
  if reading.encodes_all:
    return tuple(sites)
  own = {str(number): outline(site) for number, site in enumerate(sites) if site is not None}
  told = reading.processes.merged(f'lengths of {what}', own)
  return tuple(
    restored(told[str(number)], partial(_asked, corpus, reading.style), reading.labels)
    if site is None else site
    for number, (corpus, site) in enumerate(zip(corpora, sites, strict=True)))


def _asked(corpus: SiteCorpus, style: str, task: str):
  return ask(task, corpus, style)

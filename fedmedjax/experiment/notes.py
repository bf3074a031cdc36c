"""The notes of a study's sites: read, dealt out, tokenised."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from fedmedjax.data.canaries import Canary, draw_canaries, notes_of
from fedmedjax.data.damage import Damage
from fedmedjax.data.formats.corpora import (
  CORPORA,
  UNDIVIDED,
  SiteFolder,
  divided,
  load_corpus,
  load_folder,
)
from fedmedjax.data.leaks import unjudged, unleaked
from fedmedjax.data.partition import annotating, asked_alike, partition
from fedmedjax.data.pieces import drawable
from fedmedjax.data.relations import asked_like, asked_of_trained
from fedmedjax.data.shares import apportioned
from fedmedjax.data.shots import shots_of, tested_texts
from fedmedjax.data.site import SiteData
from fedmedjax.data.statistics import lacking
from fedmedjax.data.synthetic.cohorts import COHORTS, generate_cohort
from fedmedjax.data.text_task import TEXT
from fedmedjax.experiment.config import leaves
from fedmedjax.experiment.own_parts import OwnPart, own_parts, where_it_failed
from fedmedjax.experiment.own_schema import study_schema
from fedmedjax.experiment.privacy_checks import SITE
from fedmedjax.experiment.private_training import check_patients, reading_units
from fedmedjax.experiment.reading import Reading, check_read_alike, known_corpora, known_sites
from fedmedjax.experiment.types import Data
from fedmedjax.fed.builders import build
from fedmedjax.runtime.progress import Reporter
from fedmedjax.types import PAPER, InputError, Schema, SiteCorpus, Skew

# Most sites whose held-out sentences are answered while training (config.eval.every).
_WATCHED_SITES = 12
_TEST_SHARE = 0.2
_ALL_HERE = Reading()
# Of notes or rows that are not parted yet, by the key that names their site.
_TEST_SHARES = {'external': {'test_share': 1.0}, 'server_validation': {'test_share': 0.0}}


def data_root(path: str) -> Path:
  """config.data.root, else FEDMEDJAX_DATA, else ../shared/data."""
  return Path(os.path.expanduser(path or os.environ.get('FEDMEDJAX_DATA') or '../shared/data'))


def data_seed(config: ConfigDict) -> int:
  """The seed of all draws of notes and of their damage: config.data.seed, or config.seed."""
  return config.seed if config.data.seed < 0 else config.data.seed


class Corpora(NamedTuple):
  """The notes of a study."""

  sites: list[SiteCorpus]      # config.data.sites
  external: list[SiteCorpus]   # config.data.external
  parts: list[SiteCorpus]      # what the sites' training notes were dealt out to, if they were
  skew: Skew | None
  server: list[SiteCorpus] = []  # config.data.server_validation: its training notes alone
  schema: Schema = PAPER
  reading: Reading = Reading()  # whose notes are here


def load_corpora(
  config: ConfigDict, own: Mapping[str, OwnPart] | None = None,
  given: Mapping[str, SiteCorpus] = MappingProxyType({}), reading: Reading = _ALL_HERE,
) -> Corpora:
  """Reads the notes of all sites, and deals them out if config.data.partition says so.

  Args:
    config: validated.
    own: the user's own parts, by key; a partitioner of config.data.partition.kind may be there.
    given: notes that were given in Python, by name; they go before cohorts, corpora and folders.
    reading: which of them this process reads; the others have no notes here.
  """
  folders = {site['name']: site for site in config.data.folders}
  schema = study_schema(config.data.schema, config.data.prompt)

  def load(key: str, name: str) -> SiteCorpus:
    if name in given:
      site = given[name]
      if UNDIVIDED in site.report:
        site = divided(site, _TEST_SHARES.get(key, {}).get('test_share', _TEST_SHARE))
      return _drawable(site._replace(schema=schema))
    if name in COHORTS:
      wanted = config.data.synthetic_notes if key == 'sites' else 0
      return _within(
        generate_cohort(name, seed=data_seed(config), train_notes=wanted or None), schema)
    if name in CORPORA:
      return load_corpus(name, data_root(config.data.root), schema)
    if name in folders:
      # A site that never trains is tested on all of its notes, and V is all of them, unless the
      # entry says otherwise.
      share = _TEST_SHARES.get(key, {})
      return load_folder(SiteFolder(**(share | folders[name])), schema)
    raise InputError(
      f'config.data.{key}: unknown site {name!r}; allowed are '
      f'{", ".join((*COHORTS, *CORPORA, *folders))}')

  def loaded(key: str, names: Sequence[str], owners: Sequence[int]) -> list[SiteCorpus | None]:
    return [load(key, name) if reading.mine(owners, number) else None
            for number, name in enumerate(names)]

  sites = loaded('sites', config.data.sites, reading.trained)
  external = loaded('external', config.data.external, reading.external)
  name, chosen = config.data.server_validation, config.data.partition
  server = loaded('server_validation', [name] * bool(name), reading.server)
  if reading.reads_all:
    check_read_alike(reading, [*sites, *external, *server])
    server = [unjudged(one, [*sites, *external]) for one in server]
    sites = unleaked(sites, external, server)
  else:
    sites, external, server = known_corpora(reading, sites, external, server, schema)
  mine = own_parts({'data.partition.kind': chosen.kind}, own).get('data.partition.kind')
  parts, skew = partition(
    sites, chosen.kind, unit=chosen.unit, sites=chosen.sites, strength=chosen.strength,
    seed=data_seed(config), sizes=chosen.sizes, damage=Damage(
      chosen.corrupted, chosen.corrupted_sites, chosen.corruption, chosen.missing,
      chosen.missing_sites),
    deal=mine and partial(build_deal, mine)) if chosen.kind else ([], None)
  external = [asked_like(cohort, parts or sites) for cohort in external]
  server = [asked_of_trained(corpus, parts or sites) for corpus in server]
  return Corpora(asked_alike(sites) if parts else sites, external, parts, skew, server, schema,
                 reading)


def _within(site: SiteCorpus, schema: Schema) -> SiteCorpus:
  """A site of the paper's types under another schema: the types that both have.

  The report counts the entities of the others as lacking_type_TYPE.

  Raises:
    InputError: there are none.
  """
  if not schema.source:
    return site._replace(schema=schema)
  types = tuple(kind for kind in schema.types if kind in site.types)
  if not types:
    raise InputError(
      f'config.data.schema={schema.source!r}: site {site.name!r} annotates '
      f'{", ".join(site.types)}, none of which is in it; leave it out of config.data.sites and '
      'external (external=() if you did not name it)')
  left_out = Counter(
    f'lacking_type_{span.type}' for note in (*site.train, *site.test) for span in note.spans
    if span.type in site.types and span.type not in types)
  return annotating(site, types)._replace(schema=schema, report=site.report | left_out)


def _drawable(site: SiteCorpus) -> SiteCorpus:
  """The site, with a part that is a single note cut into sentences; see `pieces.drawable`."""
  counts = Counter()
  train, test = (tuple(drawable(part, counts)) for part in (site.train, site.test))
  return site._replace(
    train=train, test=test, report=site.report | dict(counts)) if counts else site


def build_deal(part: OwnPart, notes, types, sites, strength, rng) -> np.ndarray:
  """What a partitioner of the user's own deals out: i[number of notes], the site of each.

  It is given those of the arguments that its signature names; see `data/partition.py`.
  """
  try:
    return build(part.builder, {
      'notes': notes, 'types': types, 'sites': sites, 'strength': strength, 'rng': rng}, part.name)
  except InputError:
    raise
  except Exception as error:  # a user's program: it may raise anything
    raise InputError(
      f'config.data.partition.kind={part.name!r}: {where_it_failed(error, part.name)}') from None


def encode_sites(
  base, encode: Callable[..., SiteData], config: ConfigDict, corpora: Corpora, reporter: Reporter
) -> Data:
  """Sites that train are tested, too, unless their notes were dealt out.

  `encode` takes the keywords of `site.read_site`, but `show` only where config.data.shots is set.
  """
  data, scored = config.data, config.eval
  for corpus in (*corpora.sites, *corpora.external, *corpora.server):
    if left_out := lacking(corpus.report):
      reporter.say_unwrapped(f'{corpus.name}: the schema lacks, and reading left out: {left_out}')
  check_patients(leaves(config.to_dict()), corpora.parts or corpora.sites)
  training = partial(
    encode, max_test=scored.max_examples, seed=data_seed(config),
    validation_share=data.validation_share, **reading_units(leaves(config.to_dict())),
    # With a V of the server's own sites keep all their notes to train on.
    validation_examples=0 if corpora.server else data.validation_examples)
  counts = map(len, (corpora.sites, corpora.external, corpora.parts, corpora.server))
  reading = corpora.reading
  tested_on = tested_texts((*corpora.sites, *corpora.external)) if data.shots else ()

  def showing(trained: Sequence[SiteData] | None = None) -> dict[str, Callable]:
    return {'show': partial(
      shots_of, count=data.shots, seed=data_seed(config), tested=tested_on, trained=trained)} if (
        data.shots) else {}

  with reporter.task('tokenising', sum(counts)) as advance:

    def encoded(
      notes: list[SiteCorpus], how: Callable[..., SiteData], owners: Sequence[int], what: str,
      limits: Sequence[dict[str, Any]] = ()
    ) -> tuple[SiteData, ...]:
      found = []
      for number, (corpus, limit) in enumerate(
          zip(notes, limits or [{}] * len(notes), strict=True)):
        here = reading.encodes_all or owners[number] == reading.processes.index
        found.append(how(corpus, **limit) if here else None)
        advance()
      return known_sites(reading, what, notes, found)

    trained = corpora.parts or corpora.sites
    canaries = planted_canaries(config, trained)
    limits = [limit | ({'planted': planted} if planted else {}) for limit, planted in zip(
      _limits(config, len(trained)), notes_of(canaries, trained), strict=True)]
    own = partial(training, **showing())
    parts = encoded(
      corpora.parts, partial(own, tests=False), reading.trained, 'sites', limits) if (
        corpora.parts) else ()
    sites = () if parts else encoded(corpora.sites, own, reading.trained, 'sites', limits)
    lent = showing(parts or sites)
    tested = partial(encode, trains=False, **lent)
    sites = sites or encoded(
      corpora.sites, partial(tested, max_test=scored.max_examples), reading.tested, 'tested sites')
    external = encoded(corpora.external, partial(
      tested, max_test=scored.max_external or scored.max_examples), reading.external, 'cohorts')
    server = encoded(corpora.server, partial(
      encode, tests=False, validates=True, validation_examples=data.validation_examples, **lent),
      reading.server, "the server's notes")
  return Data(
    base, parts or sites, sites, external, corpora.skew, server=server, schema=corpora.schema,
    reading=_named(reading, parts or sites, sites, external, server))


def _named(reading: Reading, *sites: Sequence[SiteData]) -> Reading:
  """With the names of the sites that are here; of the given kinds the owners are in `reading`."""
  if reading.processes.count == 1:
    return reading
  owners = reading.trained, reading.tested, reading.external, reading.server
  return reading._replace(names=frozenset(
    site.name for kind, own in zip(sites, owners, strict=True)
    for site, owner in zip(kind, own, strict=True) if owner == reading.processes.index))


def planted_canaries(config: ConfigDict, sites: Sequence[SiteCorpus | SiteData]) -> list[Canary]:
  """The canaries of config.privacy.canaries, those that are left out, too; of sites that train.

  Raises:
    InputError: they would be planted where only modifiers of given entities are asked for.
  """
  count = config.privacy.canaries
  if not count or config.privacy.unit == SITE or not config.fed.train:
    return []
  if config.data.tasks == ('re',) or 're' in config.data.site_tasks or (
      config.fed.learner == 'bert'):
    raise InputError(
      f'config.privacy.canaries={count}: canaries are entities or rows of their own, and a site '
      "has neither with task 're' alone, nor is a BERT audited; use 0")
  return draw_canaries(
    [(site.name, site.types) for site in sites], count, config.seed,
    rows=config.data.tasks == (TEXT,))


def _limits(config: ConfigDict, sites: int) -> list[dict[str, int]]:
  """The most notes and sentences that each site trains on, as `read_site` takes them.

  Where config.data.partition.sizes are set, config.data says those of the mean site.
  """
  limits: list[dict[str, int]] = [{} for _ in range(sites)]
  for key in ('max_train_notes', 'max_train_sentences'):
    most, sizes = config.data[key], config.data.partition.sizes
    # A site without any could not train, and 0 = all.
    by_site = np.maximum(apportioned(sizes, most * sites), 1) if most and sizes else [most] * sites
    for limit, own in zip(limits, by_site, strict=True):
      limit[key] = int(own)
  return limits


def watched_sites(sites: Sequence[SiteData]) -> tuple[SiteData, ...]:
  """The first sites that have held-out sentences to watch, with these as their test examples.

  Each has one task: its first, which finds entities wherever the site annotates them.
  """
  out = []
  for site in sites:
    part = next((part for part in site.tasks if part.watched), None)
    if part and len(out) < _WATCHED_SITES:
      out.append(site._replace(
        tasks=(part._replace(test=part.watched, test_tokens=part.watched_tokens),)))
  return tuple(out)

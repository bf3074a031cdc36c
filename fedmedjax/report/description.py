"""The description of the sites' notes, without any training: tables, a figure and numbers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from rich.table import Table

from fedmedjax.data import statistics
from fedmedjax.data.site import SiteData
from fedmedjax.data.statistics import SiteStatistics
from fedmedjax.report.description_figure import figure
from fedmedjax.report.set_aside import set_aside
from fedmedjax.report.type_colours import described
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store import files
from fedmedjax.types import PAPER, Schema

# Most sites of a partition that are described; a table of more would be hard to read.
SHOWN = 20
# Columns of a narrow terminal, and those of the names of sites with their frame.
_WIDTH, _NAME = 80, 24
DIVERGENCES = {
  'entity types': statistics.type_divergence, 'vocabulary': statistics.vocabulary_divergence}
# Of rows.
_ROWS = {'targets': statistics.target_divergence, 'vocabulary': statistics.vocabulary_divergence}
# Of no more different targets than these, it is told how many rows have each.
_TOLD = 10


def of_rows(sites: Sequence[SiteStatistics]) -> bool:
  """Whether the sites hold the rows of an own task."""
  return any(site.targets is not None for site in sites)


def divergences(sites: Sequence[SiteStatistics]) -> dict[str, Callable]:
  """{name: function of two sites} of what is told about these."""
  return _ROWS if of_rows(sites) else DIVERGENCES


def _label(site: SiteStatistics, external: Sequence[str]) -> str:
  return f'{site.name} (external)' if site.name in external else site.name


def size_tables(sites: Sequence[SiteStatistics], external: Sequence[str]) -> list[Table]:
  """Numbers of notes, sentences and words of each site; its annotations and lengths.

  Two tables, since a terminal of 80 columns has no room for one.
  """
  sizes = _table('Sites: size', 'notes,\ntrain + test', 'sentences', 'words', 'vocabulary')
  found = _table(
    'Sites: annotations, and words a note (median) and a sentence (median, 95 %)', 'entities',
    'modifiers', 'words\na note', 'words\na sentence')
  for site in sites:
    note, sentence = (
      np.percentile(lengths, (50, 95)) if len(lengths) else np.zeros(2)
      for lengths in (site.note_words, site.sentence_words))
    sizes.add_row(
      _label(site, external), f'{site.train_notes:,} + {site.test_notes:,}',
      f'{len(site.sentence_words):,}', f'{site.sentence_words.sum():,}',
      f'{len(site.vocabulary):,}')
    found.add_row(
      _label(site, external), f'{site.entities.total():,}', f'{site.modifiers.total():,}',
      f'{note[0]:,.0f}', f'{sentence[0]:.0f}, {sentence[1]:.0f}')
  return [sizes, found]


def _table(title: str, *columns: str) -> Table:
  """A table of sites whose numbers are never cut: only the names of sites are broken into lines."""
  table = Table(title=title, title_justify='left')
  table.add_column('site', overflow='fold')
  for name in columns:
    table.add_column(name, justify='right', no_wrap=True)
  return table


def row_tables(sites: Sequence[SiteStatistics], external: Sequence[str]) -> list[Table]:
  """Numbers of rows and of words in their inputs and targets; of different targets."""
  sizes = _table(
    'Sites: rows, and words an input and a target (median, 95 %)', 'rows,\ntrain + test',
    'vocabulary', 'words\nan input', 'words\na target')
  targets = _table('Sites: targets', 'different\ntargets', 'the\ncommonest')
  for site in sites:
    given, written = (
      np.percentile(lengths, (50, 95)) if len(lengths) else np.zeros(2)
      for lengths in (site.sentence_words, statistics.target_words(site.targets or {})))
    counts = [*(site.targets or {}).values()]
    sizes.add_row(
      _label(site, external), f'{site.train_notes:,} + {site.test_notes:,}',
      f'{len(site.vocabulary):,}', f'{given[0]:.0f}, {given[1]:.0f}',
      f'{written[0]:.0f}, {written[1]:.0f}')
    targets.add_row(
      _label(site, external), f'{len(counts):,}',
      f'{max(counts) / sum(counts):.1%}' if counts else '-')
  return [sizes, targets]


def type_table(
  sites: Sequence[SiteStatistics], external: Sequence[str], types: Sequence[str] = PAPER.types
) -> Table:
  """Share of each entity type; '-' = not annotated."""
  # A percentage has 6 characters, the frame of a column 3.
  few = sum(max(len(kind), 6) + 3 for kind in types) + _NAME <= _WIDTH
  table = _table('Sites: share of entity types', *(types if few else ()))
  if not few:
    table.add_column('entity types')
  for site in sites:
    mix = statistics.shares(site.entities, site.types)
    listed = ', '.join(f'{kind} {mix[kind]:.1%}' for kind in types if kind in mix)
    table.add_row(
      _label(site, external),
      *((f'{mix[kind]:.1%}' if kind in mix else '-' for kind in types) if few else [listed]))
  return table


def remarks(sites: Sequence[SiteStatistics], external: Sequence[str]) -> list[str]:
  """Modifiers of each site, and what reading set aside, a line each; none where there is nothing.
  """
  said = []
  for site in sites:
    modifiers = ', '.join(f'{kind} {count:,}' for kind, count in site.modifiers.most_common())
    aside = set_aside(site.report, 'rows') if site.targets else set_aside(site.report)
    told = '; '.join(filter(None, (
      modifiers and f'modifiers {modifiers}', aside and f'set aside {aside}')))
    said += [f'{_label(site, external)}: {told}'] if told else []
  return said


def divergence_tables(name: str, values: np.ndarray, labels: Sequence[str]) -> list[Table]:
  """Divergences between any two sites, in parts of as many columns as 80 characters have room for.

  Args:
    name: of what differs.
    values: f[S, S] in bits, NaN = not defined.
    labels: of the S sites.
  """
  headings = ['\n'.join(label.replace('_', ' ').split()) for label in labels]
  parts: list[list[int]] = [[]]
  used = 0
  for at, heading in enumerate(headings):
    width = max(5, *map(len, heading.split('\n'))) + 3
    if parts[-1] and used + width > _WIDTH - _NAME:
      parts.append([])
      used = 0
    parts[-1].append(at)
    used += width
  tables = []
  for part in parts:
    table = _table(f'Jensen-Shannon divergence of {name}, bits (0 = alike, 1 = apart)',
                   *(headings[at] for at in part))
    for label, row in zip(labels, values, strict=True):
      table.add_row(label, *('-' if np.isnan(row[at]) else f'{row[at]:.3f}' for at in part))
    tables.append(table)
  return tables


def numbers(
  sites: Sequence[SiteStatistics], external: Sequence[str], schema: Schema = PAPER
) -> dict:
  """The numbers of the tables, for description.json and sites.json."""
  return {
    'schema': described(schema),
    'sites': {site.name: {
      'external': site.name in external, 'types': site.types, 'train_notes': site.train_notes,
      'test_notes': site.test_notes, 'sentences': len(site.sentence_words),
      'words': int(site.sentence_words.sum()), 'vocabulary': len(site.vocabulary),
      'sentence_words_quantiles': np.percentile(site.sentence_words, (5, 25, 50, 75, 95)).tolist()
      if len(site.sentence_words) else [],
      'entities': dict(site.entities), 'modifiers': dict(site.modifiers), 'report': site.report,
    } | _targets(site) for site in sites},
    'jensen_shannon_bits': {
      name: statistics.matrix(divergence, sites)
      for name, divergence in divergences(sites).items()},
  }


def _targets(site: SiteStatistics) -> dict:
  """The key `targets` of a site of rows. Targets may be words of notes: they are only counted."""
  if site.targets is None:
    return {}
  counts = sorted(site.targets.values(), reverse=True)
  return {'targets': {
    'rows': sum(counts), 'different': len(counts), 'commonest': counts[0],
    'counts': counts if len(counts) <= _TOLD else [],
    'words_quantiles': np.percentile(
      statistics.target_words(site.targets), (5, 25, 50, 75, 95)).tolist()}}


def used(
  sites: Sequence[SiteData], tested: Sequence[SiteData], external: Sequence[SiteData],
  server: Sequence[SiteData] = (), schema: Schema = PAPER,
  known: Mapping[str, SiteStatistics] | None = None,
) -> dict:
  """The contents of a run's sites.json: `numbers` of what it uses, and examples by task.

  Args:
    sites: the sites that train; of sites dealt out of a pool only the first are described.
    tested: the in-domain sites that are tested: the same, or those whose notes were dealt out.
    external: the external cohorts.
    server: whose notes are the server's validation set; of them only that many are told.
    schema: whose types are asked for.
    known: statistics by site; None = they are made here.
  """
  shown = (*(() if sites == tested else sites[:SHOWN]), *tested, *external)
  examples = {
    site.name: {part.ask.task: {
      key: len(getattr(part, key)) for key in ('train', 'validation', 'test')}
      for part in site.tasks} for site in shown}
  told = numbers(
    [statistics.used_statistics(site) if known is None else known[site.name] for site in shown],
    [site.name for site in external], schema)
  return files.plain(told | {
    'examples': examples, 'training_sites': len(sites),
    'server_validation': {
      site.name: sum(len(part.validation) for part in site.tasks) for site in server}})


def describe(
  sites: Sequence[SiteStatistics], external: Sequence[str], output: Path | None,
  reporter: Reporter, schema: Schema = PAPER,
) -> None:
  """Prints the tables; with `output`, writes description.json, .svg and .png there."""
  rows = of_rows(sites)
  reporter.say(f'Counted are all {"rows" if rows else "notes"} of a site, for training and for '
               'tests; the page of a run counts those that the run uses.')
  tables = row_tables(sites, external) if rows else [
    *size_tables(sites, external), type_table(sites, external, schema.types)]
  for table in tables:
    reporter.say(table)
  for line in remarks(sites, external):
    reporter.say(line)
  for name, divergence in divergences(sites).items():
    for table in divergence_tables(
        name, statistics.matrix(divergence, sites), [_label(site, external) for site in sites]):
      reporter.say(table)
  if output is not None:
    files.write_json(output / 'description.json', files.plain(numbers(sites, external, schema)))
    # Text is not turned into outlines, and the same sites give the same bytes.
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'fedmedjax'}):
      drawn = figure(sites, [_label(site, external) for site in sites], schema,
                     divergences(sites))
      drawn.savefig(output / 'description.svg', metadata={'Date': None})
      drawn.savefig(output / 'description.png', dpi=120)
    reporter.say(f'written: description.json, description.svg, description.png in {output}')

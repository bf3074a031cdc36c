"""The description of the sites' notes, without any training: tables, a figure and numbers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from fedmedjax.data import statistics
from fedmedjax.data.site import SiteData
from fedmedjax.data.statistics import SiteStatistics
from fedmedjax.report.set_aside import set_aside
from fedmedjax.report.type_colours import described
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store import files
from fedmedjax.types import PAPER, Schema

# Most sites of a partition that are described; a table of more would be hard to read.
SHOWN = 20
# More entity types than these share a column of the table.
_COLUMNS = 6
_CYCLE = 10  # colours of matplotlib's cycle
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


def size_table(sites: Sequence[SiteStatistics], external: Sequence[str]) -> Table:
  """Numbers of notes, sentences, words, entities and modifiers of each site."""
  table = Table(title='Sites: size, and words a note (median) and a sentence (median, 95 %)')
  table.add_column('site', no_wrap=True)
  for name in ('notes, train + test', 'sentences', 'words', 'vocabulary', 'words a note',
               'words a sentence', 'entities', 'modifiers'):
    # Otherwise a narrow terminal would break words of the headings.
    table.add_column(name, justify='right', min_width=max(map(len, name.split())))
  for site in sites:
    note, sentence = (
      np.percentile(lengths, (50, 95)) if len(lengths) else np.zeros(2)
      for lengths in (site.note_words, site.sentence_words))
    table.add_row(
      _label(site, external), f'{site.train_notes:,} + {site.test_notes:,}',
      f'{len(site.sentence_words):,}', f'{site.sentence_words.sum():,}',
      f'{len(site.vocabulary):,}', f'{note[0]:,.0f}', f'{sentence[0]:.0f}, {sentence[1]:.0f}',
      f'{site.entities.total():,}', f'{site.modifiers.total():,}')
  return table


def row_table(sites: Sequence[SiteStatistics], external: Sequence[str]) -> Table:
  """Numbers of rows and of words in their inputs and targets; what reading set aside."""
  table = Table(title='Sites: rows, and words an input and a target (median, 95 %)')
  table.add_column('site', no_wrap=True)
  for name in ('rows, train + test', 'vocabulary', 'words an input', 'words a target',
               'different targets', 'the commonest'):
    table.add_column(name, justify='right', min_width=max(map(len, name.split())))
  table.add_column('set aside')
  for site in sites:
    given, written = (
      np.percentile(lengths, (50, 95)) if len(lengths) else np.zeros(2)
      for lengths in (site.sentence_words, statistics.target_words(site.targets or {})))
    counts = [*(site.targets or {}).values()]
    table.add_row(
      _label(site, external), f'{site.train_notes:,} + {site.test_notes:,}',
      f'{len(site.vocabulary):,}', f'{given[0]:.0f}, {given[1]:.0f}',
      f'{written[0]:.0f}, {written[1]:.0f}', f'{len(counts):,}',
      f'{max(counts) / sum(counts):.1%}' if counts else '-', set_aside(site.report, 'rows') or '-')
  return table


def type_table(
  sites: Sequence[SiteStatistics], external: Sequence[str], types: Sequence[str] = PAPER.types
) -> Table:
  """Share of each entity type ('-' = not annotated), modifiers, and what reading set aside."""
  table = Table(title='Sites: share of entity types, modifiers, and what was set aside')
  table.add_column('site', no_wrap=True)
  few = len(types) <= _COLUMNS
  for name in types if few else ['entity types']:
    table.add_column(name, justify='right' if few else 'left')
  table.add_column('modifiers')
  table.add_column('set aside')
  for site in sites:
    mix = statistics.shares(site.entities, site.types)
    listed = ', '.join(f'{kind} {mix[kind]:.1%}' for kind in types if kind in mix)
    table.add_row(
      _label(site, external),
      *((f'{mix[kind]:.1%}' if kind in mix else '-' for kind in types) if few else [listed]),
      ', '.join(f'{kind} {count:,}' for kind, count in site.modifiers.most_common()) or '-',
      set_aside(site.report) or '-')
  return table


def divergence_table(name: str, values: np.ndarray, labels: Sequence[str]) -> Table:
  """Divergences between any two sites; `values` f[S, S] in bits, NaN = not defined."""
  table = Table(title=f'Jensen-Shannon divergence of {name}, bits (0 = alike, 1 = apart)')
  table.add_column('', no_wrap=True)
  for label in labels:
    table.add_column(label.replace('_', ' '), justify='right')
  for label, row in zip(labels, values, strict=True):
    table.add_row(label, *('-' if np.isnan(value) else f'{value:.3f}' for value in row))
  return table


def figure(
  sites: Sequence[SiteStatistics], external: Sequence[str], kinds: Sequence[str] = PAPER.types
) -> Figure:
  """A figure with a panel each for sizes, sentence lengths, types and the two divergences."""
  labels = [_label(site, external) for site in sites]
  places = np.arange(len(sites))
  drawn = Figure(figsize=(15, 5 + 0.6 * len(sites)), layout='constrained')
  (size, length, mix), (types, words, _) = axes = drawn.subplots(2, 3)
  axes[1, 2].set_axis_off()
  for left, count, name in ((0, 'train_notes', 'train'), ('train_notes', 'test_notes', 'test')):
    size.barh(places, [getattr(site, count) for site in sites], label=name,
              left=[getattr(site, left) for site in sites] if left else None)
  size.set(title='notes', yticks=places, yticklabels=labels)
  size.legend()
  length.boxplot([site.sentence_words for site in sites], orientation='horizontal',
                 positions=places, showfliers=False, whis=(5, 95))
  length.set(title='words a sentence (whiskers: 5 % and 95 %)', yticks=places, yticklabels=[])
  rows, start = of_rows(sites), np.zeros(len(sites))
  # A cycle of colours would begin again.
  colours = matplotlib.colormaps['turbo'](np.linspace(0.05, 0.95, len(kinds))) if (
    len(kinds) > _CYCLE) else [f'C{i}' for i in range(len(kinds))]
  for kind, colour in () if rows else zip(kinds, colours, strict=True):
    width = np.array([statistics.shares(site.entities, kinds)[kind] for site in sites])
    mix.barh(places, width, left=start, label=kind, color=colour)
    start += width
  if rows:
    size.set(title='rows')
    length.set(title='words an input (whiskers: 5 % and 95 %)')
    mix.boxplot([statistics.target_words(site.targets or {}) for site in sites],
                orientation='horizontal', positions=places, showfliers=False, whis=(5, 95))
    mix.set(title='words a target (whiskers: 5 % and 95 %)', yticks=places, yticklabels=[])
  else:
    mix.set(title='share of entity types', yticks=places, yticklabels=[], xlim=(0, 1))
    mix.legend(ncols=min(len(kinds), 4), fontsize='small', loc='upper center',
               bbox_to_anchor=(0.5, -0.1))
  for panel in (size, length, mix):
    panel.invert_yaxis()
  for panel, (name, divergence) in zip((types, words), divergences(sites).items(), strict=True):
    values = statistics.matrix(divergence, sites)
    panel.imshow(values, vmin=0, vmax=1, cmap='viridis')
    for i, j in np.argwhere(~np.isnan(values)):
      panel.text(j, i, f'{values[i, j]:.2f}', ha='center', va='center',
                 color='white' if values[i, j] < 0.6 else 'black')
    panel.set(title=f'divergence of {name}, bits', xticks=places, yticks=places,
              yticklabels=labels)
    panel.set_xticks(places, labels, rotation=30, ha='right')
  return drawn


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
  if of_rows(sites):
    reporter.say(row_table(sites, external))
  else:
    reporter.say(size_table(sites, external))
    reporter.say(type_table(sites, external, schema.types))
  for name, divergence in divergences(sites).items():
    reporter.say(divergence_table(
      name, statistics.matrix(divergence, sites), [_label(site, external) for site in sites]))
  if output is not None:
    files.write_json(output / 'description.json', files.plain(numbers(sites, external, schema)))
    # Text is not turned into outlines, and the same sites give the same bytes.
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'fedmedjax'}):
      drawn = figure(sites, external, schema.types)
      drawn.savefig(output / 'description.svg', metadata={'Date': None})
      drawn.savefig(output / 'description.png', dpi=120)
    reporter.say(f'written: description.json, description.svg, description.png in {output}')

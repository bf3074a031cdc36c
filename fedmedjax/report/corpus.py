"""The sites of a run: sizes, entity types, what reading set aside, and how unlike they are."""

from collections.abc import Sequence
from itertools import compress

import numpy as np

from fedmedjax.report import charts
from fedmedjax.report.blocks import NONE, Chart, Charts, Section, Table
from fedmedjax.report.measures import asks_text
from fedmedjax.report.runs import Run
from fedmedjax.report.set_aside import set_aside
from fedmedjax.report.svg import type_colour
from fedmedjax.report.type_colours import recorded, type_colours
from fedmedjax.types import Schema, Skew

# Most sites of a chart.
_DRAWN = 12


def corpus_section(runs: Sequence[Run]) -> Section:
  """The section about the sites of the first run that describes them.

  One run is enough, since all runs of a comparison read the same notes.
  """
  run = next((run for run in runs if run.sites), None)
  blocks = _described(run.sites) if run else [_counted(runs[0])] if runs else []
  partition = (run or runs[0]).summary.get('partition')
  rows = asks_text((run or runs[0]).summary)
  mix = Skew(**partition) if partition else None
  dealt = mix and (mix.told('targets') if rows else str(mix))
  skew = '' if not dealt else (
    f' Training {"rows" if rows else "notes"} of all sites were pooled and dealt out: {dealt}.')
  example = 'An example is a row: an input, and the target to be written.' if rows else (
    'An example is a sentence, or for modifiers a sentence with one main entity.')
  what = 'rows' if rows else 'sentences'
  counted = (
    f' Words{"" if rows else ", entities"} and differences between sites are those of the training '
    f'{what} that are not held out and of the test {what} that were answered; fedmedjax.describe '
    f'counts all {"rows" if rows else "notes"}, so its numbers differ.') if run else ''
  return Section(
    'sites', 'Sites', f'What each site gave to this study, as it was read. {example}{skew}'
    f'{counted}', blocks)


def _counted(run: Run) -> Table:
  """The table for a run whose summary only counts training examples: of an older version, or of
  sites elsewhere; empty where these do not tell."""
  names = run.summary['sites']
  counts = run.summary.get('train_examples', ())
  if len(counts) not in (0, len(names)):
    return Table('Training examples', 'The sites were dealt out of a pool.', ('', 'sites'), [
      ('sites that train', str(len(counts))), ('examples in all', f'{sum(counts):,}')])
  return Table('Training examples', 'Held-out sentences not counted.', ('site', 'examples'), [
    (name, f'{count:,}') for name, count in zip(names, counts, strict=False)])


def _described(sites: dict) -> list:
  described = sites['sites']
  if any('targets' in site for site in described.values()):
    return _rows(sites)
  rows, aside = [], []
  for name, site in described.items():
    label = f'{name} (external)' if site['external'] else name
    tasks = sites['examples'][name]
    counts = {key: ' + '.join(f'{entry[key]:,}' for entry in tasks.values()) or NONE
              for key in ('train', 'validation', 'test')}
    unseen = site['report'].get('held_out_test_entities_percent')
    rows.append([
      label, counts['train'], counts['validation'], counts['test'], f'{site["words"]:,}',
      _median(site['sentence_words_quantiles']), f'{sum(site["entities"].values()):,}',
      f'{sum(site["modifiers"].values()):,}', NONE if unseen is None else f'{unseen} %'])
    aside.append([label, ', '.join(site['types']), set_aside(site['report']) or 'nothing'])
  note = ('Examples by task where there are several (entities + modifiers). Available: for '
          'training, of which a run with config.fed.local_steps may take a part. New test entities '
          'stand in no training note.') + _more(sites)
  columns = ('site', 'available', 'held out', 'test', 'words', 'words a sentence (median)',
             'entities', 'modifiers', 'new test entities')
  known = [any(row[i] not in ('0', NONE) for row in rows) for i in range(len(columns))]
  return [
    Table('Size', note, [*compress(columns, known)], [[*compress(row, known)] for row in rows]),
    Table('Types, and what reading set aside', 'What cannot be kept in flat spans is left out and '
          'counted, not silently dropped.', ('site', 'annotated types', 'set aside'), aside,
          words=True),
    *_charts(described, sites['jensen_shannon_bits'], recorded(sites))]


def _more(sites: dict) -> str:
  """Sentences about sites that train, and notes of the server, which no row tells of."""
  total, described = sites['training_sites'], sites['sites']
  left = total - sum(bool(sum(e['train'] for e in sites['examples'][name].values()))
                     for name in described)
  said = f' {left} more sites train.' * (left > 0)
  # Runs of older versions do not say.
  for name, count in sites.get('server_validation', {}).items():
    said += f' The validation set is the server\'s own: {count:,} examples of {name}.'
  return said


def _rows(sites: dict) -> list:
  """The blocks about sites of rows. Targets may be words of notes: they are only counted."""
  rows, told, aside = [], [], []
  for name, site in sites['sites'].items():
    label = f'{name} (external)' if site['external'] else name
    counts = (sum(entry[key] for entry in sites['examples'][name].values())
              for key in ('train', 'validation', 'test'))
    targets = site.get('targets')
    rows.append([
      label, *(f'{count:,}' for count in counts), _median(site['sentence_words_quantiles']),
      _median(targets['words_quantiles']) if targets else NONE,
      f'{targets["different"]:,}' if targets else NONE,
      f'{targets["commonest"] / targets["rows"]:.0%}' if targets else NONE])
    if targets and targets['counts']:
      told.append([label, ', '.join(f'{count:,}' for count in targets['counts'])])
    if said := set_aside(site['report'], 'rows'):
      aside.append([label, said])
  columns = ('site', 'available', 'held out', 'test', 'words an input (median)',
             'words a target (median)', 'different targets', 'the commonest')
  return [
    Table('Rows', 'Available: for training. The commonest: the share of rows with the commonest '
          'target of the site. So many are right where all answers are this one.' + _more(sites),
          columns, rows),
    Table('Rows of each target', 'The commonest first, of sites with few different targets.',
          ('site', 'rows'), told, words=True),
    Table('What reading set aside', '', ('site', 'set aside'), aside, words=True),
    *_apart(sites['sites'], {
      name: values for name, values in sites['jensen_shannon_bits'].items()
      if any(row[i] is not None for at, row in enumerate(values) for i in range(at))})]


def _median(quantiles: Sequence[float]) -> str:
  return f'{quantiles[2]:.0f}' if quantiles else NONE


def _apart(described: dict, divergences: dict, *more: Chart) -> list[Charts]:
  """The drawings of how unlike sites are, behind others."""
  names = list(described)[:_DRAWN]
  note = f'Drawn are the first {_DRAWN} of {len(described)} sites.' * (len(described) > _DRAWN)
  drawn = [
    Chart(
      f'How unlike: {name}', 'Jensen-Shannon divergence in bits: 0 = alike, 1 = nothing in common.',
      charts.heat(
        f'apart-{index}', f'Divergence of {name} between any two sites', names, names,
        np.array([[np.nan if value is None else value for value in row[:_DRAWN]]
                  for row in values[:_DRAWN]], float)))
    for index, (name, values) in enumerate(divergences.items())] if len(names) > 1 else []
  return [Charts([*more, *drawn], note=note)]


def _charts(described: dict, divergences: dict, schema: Schema) -> list[Charts]:
  colours, names = type_colours(schema), list(described)[:_DRAWN]
  counts = np.array([[described[name]['entities'].get(kind, 0) for kind in colours]
                     for name in names], float)
  mix = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  shares = Chart(
    'Mix of entity types', 'Share of each type among a site\'s entities.', charts.shares(
      'mix', 'Share of entity types of every site', names, mix,
      [*map(type_colour, range(1, len(colours) + 1))]),
    [(colour.name, kind) for kind, colour in colours.items()], marks=False)
  return _apart(described, divergences, shares)

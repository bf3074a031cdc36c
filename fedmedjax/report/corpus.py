"""The sites of a run: sizes, entity types, what reading set aside, and how unlike they are."""

from collections.abc import Sequence
from itertools import compress

import numpy as np

from fedmedjax.report import charts
from fedmedjax.report.blocks import Chart, Charts, Section, Table
from fedmedjax.report.runs import Run
from fedmedjax.report.scores import NONE
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
  skew = (f' Training notes of all sites were pooled and dealt out: {Skew(**partition)}.'
          if partition else '')
  return Section(
    'sites', 'Sites', 'What each site gave to this study, as it was read. An example is a '
    'sentence, or for modifiers a sentence with one main entity.' + skew, blocks)


def _counted(run: Run) -> Table:
  """The table for a run of an older version, whose summary only counts training examples."""
  names = run.summary['sites']
  counts = run.summary.get('train_examples', ())
  if len(counts) != len(names):
    return Table('Training examples', 'The sites were dealt out of a pool.', ('', 'sites'), [
      ('sites that train', str(len(counts))), ('examples in all', f'{sum(counts):,}')])
  return Table('Training examples', 'Held-out sentences not counted.', ('site', 'examples'), [
    (name, f'{count:,}') for name, count in zip(names, counts, strict=True)])


def _described(sites: dict) -> list:
  described = sites['sites']
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
    aside.append([label, ', '.join(site['types']), set_aside(site['report']) or NONE])
  total = sites['training_sites']
  left = total - sum(bool(sum(e['train'] for e in sites['examples'][name].values()))
                     for name in described)
  note = ('Examples by task where there are several (entities + modifiers). New test entities '
          'stand in no training note.') + f' {left} more sites train.' * (left > 0)
  # Runs of older versions do not say.
  for name, count in sites.get('server_validation', {}).items():
    note += f' The validation set is the server\'s own: {count:,} examples of {name}.'
  columns = ('site', 'training', 'held out', 'test', 'words', 'words a sentence (median)',
             'entities', 'modifiers', 'new test entities')
  known = [any(row[i] not in ('0', NONE) for row in rows) for i in range(len(columns))]
  return [
    Table('Size', note, [*compress(columns, known)], [[*compress(row, known)] for row in rows]),
    Table('Types, and what reading set aside', 'What cannot be kept in flat spans is left out and '
          'counted, not silently dropped.', ('site', 'annotated types', 'set aside'), aside,
          words=True),
    *_charts(described, sites['jensen_shannon_bits'], recorded(sites))]


def _median(quantiles: Sequence[float]) -> str:
  return f'{quantiles[2]:.0f}' if quantiles else NONE


def _charts(described: dict, divergences: dict, schema: Schema) -> list[Charts]:
  colours, names = type_colours(schema), list(described)[:_DRAWN]
  counts = np.array([[described[name]['entities'].get(kind, 0) for kind in colours]
                     for name in names], float)
  mix = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  note = f'Drawn are the first {_DRAWN} of {len(described)} sites.' * (len(described) > _DRAWN)
  drawn = [
    Chart(
      f'How unlike: {name}', 'Jensen-Shannon divergence in bits: 0 = alike, 1 = nothing in common.',
      charts.heat(
        f'apart-{index}', f'Divergence of {name} between any two sites', names, names,
        np.array([[np.nan if value is None else value for value in row[:_DRAWN]]
                  for row in values[:_DRAWN]], float)))
    for index, (name, values) in enumerate(divergences.items())] if len(names) > 1 else []
  shares = Chart(
    'Mix of entity types', 'Share of each type among a site\'s entities.', charts.shares(
      'mix', 'Share of entity types of every site', names, mix,
      [*map(type_colour, range(1, len(colours) + 1))]),
    [(colour.name, kind) for kind, colour in colours.items()], marks=False)
  return [Charts([shares, *drawn], note=note)]

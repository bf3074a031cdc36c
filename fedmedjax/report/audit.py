"""What an audit found, for people: the section of a run's page, and tables on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import table as terminal

from fedmedjax.report.blocks import Cell, Section, Sentences, Table
from fedmedjax.store import files

# In a run's folder; written by fedmedjax.audit, its keys are in docs/files.md.
FILE = 'audit.json'
_NONE = '\N{EN DASH}'
_ATTACKS = {'loss': 'by loss', 'calibrated': 'calibrated', 'untrained': 'untrained model'}
_NOTE = (
  '0.5 is guessing [95 % by source]. Calibrated: less the loss of the untrained model. What the '
  'untrained model finds is how unlike training and test notes are, and no leak.')


def audit_section(workdir: Path | None) -> Section:
  """The section of a run's page; without blocks where there was no audit.

  Raises:
    InputError: the file cannot be read.
  """
  held = files.read_json(workdir / FILE) if workdir and (workdir / FILE).exists() else {}
  blocks = [Sentences(sentences(held)), *_tables(held)] if held else []
  return Section(
    'audit', 'Privacy audit', 'What the adapter gives away about the notes it was trained on, by '
    'attacks that were tried; others may find more.', blocks, folded=False)


def sentences(held: Mapping[str, Any]) -> list[str]:
  """The bound beside the claim, and what the attack on all sites found, a sentence each."""
  row = held['membership'][0] if held['membership'] else None
  said = []
  if row:
    loss, calibrated, untrained = (
      f'{row["attacks"][name]["auc"]:.1%}' for name in ('loss', 'calibrated', 'untrained'))
    said.append(
      f'Of pairs of one of the {row["members"]:,} training examples and one of the '
      f'{row["others"]:,} test examples, the attack by loss tells which was trained on in {loss}, '
      f'the calibrated one in {calibrated} (guessing: 50.0%). The loss of the untrained model, '
      f'which cannot know, does so in {untrained}, by how unlike training and test notes are.')
  if bound := held['bound']:
    claim = bound['claim']
    claimed = (
      'the run claims none' if claim is None else f'the run claims {claim:.3g} at this delta')
    found = (f'is at least {bound["epsilon"]:.3g}' if bound['epsilon'] > 0
             else 'is not bounded from below')
    said.append(
      f'With {bound["confidence"]:.1%} confidence epsilon {found} (delta {bound["delta"]:.1g}, '
      f'{bound["canaries"]} canaries, which show {bound["at_best"]:.3g} at best); {claimed}.')
    if claim is not None and bound['epsilon'] > claim:
      said.append('The claim is refuted: the run is not as private as it says.')
  if found := held['extraction']:
    planted, out = found['planted'], found['held_out']
    said.append(
      f'Of {planted["number"]} planted identifiers {planted["first"]} are the likeliest of '
      f'{found["space"]} (of {out["number"]} that were not planted, {out["first"]}).')
  return said


def _tables(held: Mapping[str, Any]) -> list[Table]:
  tables = [Table(
    'Membership: area under the curve', _NOTE,
    ('site', 'members', 'others', *_ATTACKS.values()),
    [[row['site'], f'{row["members"]:,}', f'{row["others"]:,}',
      *(_area(row['attacks'][name]) for name in _ATTACKS)] for row in held['membership']])]
  columns = [f'{_ATTACKS[name]}, {false:.1%}' for name in ('loss', 'calibrated')
             for false in held['false']]
  caught = Table(
    'Membership: members caught at few false alarms',
    'The share of members whose score is above all but this share of the test examples; a dash '
    'where there are too few of these to tell.', ('site', *columns),
    [[row['site'], *(f'{share:.1%}' if row['others'] * false >= 1 else _NONE
                     for name in ('loss', 'calibrated')
                     for share, false in zip(
                       row['attacks'][name]['tpr'], held['false'], strict=True))]
     for row in held['membership']]).told()
  tables += [caught] if caught.rows else []
  if found := held['extraction']:
    tables.append(Table(
      'Planted identifiers: exposure in bits',
      f'The likeliest of {found["space"]} has the most; 1.44 on average for what was never seen.',
      ('canaries', 'number', 'mean', 'most', 'likeliest of all'),
      [[name, str(one['number']), _bits(one['mean']), _bits(one['most']), str(one['first'])]
       for name, one in (('planted', found['planted']), ('held out', found['held_out']))]))
  return tables


def _area(attack: Mapping[str, Any]) -> Cell | str:
  value = f'{attack["auc"]:.3f}'
  return value if attack['low'] is None else Cell(
    value, f'[{attack["low"]:.3f}, {attack["high"]:.3f}]')


def _bits(value: float | None) -> str:
  return _NONE if value is None else f'{value:.2f}'


def tables(held: Mapping[str, Any]) -> Sequence[Any]:
  """The same for a terminal: tables, then sentences."""
  shown: list[Any] = []
  for block in _tables(held):
    table = terminal.Table(title=block.title, caption=block.note, title_justify='left')
    for number, name in enumerate(block.columns):
      table.add_column(name, justify='right' if number else 'left')
    for row in block.rows:
      table.add_row(*(cell if isinstance(cell, str) else ' '.join(filter(None, cell))
                      for cell in row))
    shown.append(table)
  return [*shown, *sentences(held)]

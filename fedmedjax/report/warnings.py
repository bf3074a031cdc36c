"""What a finished run warns of: each sentence follows from its summary and the lines of its rounds.

A run whose model learnt nothing ends like any other, with exit status 0. These sentences are in its
last screen, in summary.json and at the top of its report; a run with nothing to warn of has none.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedmedjax.report.measures import TEXT, asks_text
from fedmedjax.report.rates import Rates, groups, rates
from fedmedjax.report.text_answers import of_rows
from fedmedjax.store.files import read_lines

Summary = Mapping[str, Any]
Lines = Sequence[Mapping[str, Any]]

# A trained model leaves a few answers in a hundred unreadable. Above a fifth, scores say more of
# the answers' form than of what was found.
UNREADABLE = 0.2
# To copy the sentence is the first thing that an answer has to do. Below a half, most entities are
# placed by guessing where they stand.
COPIED = 0.5
# Of its start, what the training loss has to be below. Whoever has learnt anything is far below it.
FALLEN = 1.0
# Of examples or of entities; fewer that are left out for their length change no score that a table
# can show.
LOST = 0.01
# Most sites or rounds that a sentence names.
_NAMED = 6


def warnings(summary: Summary, lines: Lines, predictions: Path | None = None) -> list[str]:
  """All sentences about a run, [] for a healthy one.

  Args:
    summary: summary.json, `warnings` not needed.
    lines: of metrics.jsonl; [] where nothing was trained.
    predictions: the folder of the run's answers, into which is looked for an own task.
  """
  return [
    *unreadable(summary), *uncopied(summary), *not_learnt(lines), *diverging(lines),
    *too_long(summary), *no_format(summary), *same_answers(summary, predictions)]


def _places(summary: Summary) -> Iterator[tuple[str, Rates]]:
  """(where, answers there): the in-domain sites together, then the external cohorts together."""
  for where, sites in zip(
      ('the sites', 'the external cohorts'), groups(summary), strict=True):
    if found := rates(summary, sites):
      yield where, found


def is_unreadable(summary: Summary) -> bool:
  """Whether tables should mark the run: its answers at the sites, or elsewhere, are unreadable."""
  return any(found.unreadable_share > UNREADABLE for _, found in _places(summary))


def unreadable(summary: Summary) -> Iterator[str]:
  """Too many answers had to be repaired."""
  for where, found in _places(summary):
    if found.unreadable_share > UNREADABLE:
      yield (
        f'{found.unreadable:,.10g} of {found.asked:,.10g} answers at {where} are unreadable '
        f'({found.unreadable_share:.0%}): the model ' + (
          'has not learnt how an answer is written; train longer' if summary.get('local_steps')
          else 'does not know how an answer is written'))


def uncopied(summary: Summary) -> Iterator[str]:
  """Too few answers copy their sentence; of an untrained model it is enough that they are
  unreadable."""
  for where, found in _places(summary):
    known = not summary.get('local_steps') and found.unreadable_share > UNREADABLE
    if found.copy_share < COPIED and not known:
      yield (
        f'only {found.copied:,.10g} of {found.asked:,.10g} answers at {where} copy the words of '
        f'their sentence exactly ({found.copy_share:.0%}), so that entities are placed by guess')


def not_learnt(lines: Lines) -> Iterator[str]:
  """The training loss of the last round is not below that of the first.

  Compared are sites that took part in both ends of training: the mean of their first and of their
  last losses. Where no site took part twice, nothing is known.
  """
  of_site: dict[str, list[tuple[int, float]]] = {}
  for line in lines:
    for site, loss in zip(line['sites'], line.get('train_loss') or (), strict=False):
      if loss is not None and math.isfinite(loss):
        of_site.setdefault(site, []).append((line['round'], loss))
  twice = [losses for losses in of_site.values() if len(losses) > 1]
  if not twice:
    return
  (begun, first), (ended, last) = (
    (end(losses[at][0] for losses in twice), sum(losses[at][1] for losses in twice) / len(twice))
    for at, end in ((0, min), (-1, max)))
  if last >= FALLEN * first:
    yield (
      f'the mean training loss was {first:.3f} in round {begun} and is {last:.3f} in round '
      f'{ended}: it has not fallen, so nothing was learnt; see the learning rate')


def diverging(lines: Lines) -> Iterator[str]:
  """Sites whose loss rose above its start, and sites that were left out of a round."""
  for key, what in (
      ('rising', 'the training loss rose above its start at'),
      ('quarantined', 'a loss or update that is not finite, or explodes, left out')):
    events = [f'{site} (round {line["round"]})' for line in lines for site in line.get(key) or ()]
    if events:
      more = f' and {len(events) - _NAMED} more' if len(events) > _NAMED else ''
      yield f'{what} {", ".join(events[:_NAMED])}{more}'


def too_long(summary: Summary) -> Iterator[str]:
  """Examples that were left out for their length of a run that trained."""
  if not summary.get('local_steps'):
    return
  held = summary.get('too_long') or {}
  lost = [(held.get(key, 0), held.get(f'of_{key}', 0)) for key in ('examples', 'entities')]
  if any(part > LOST * whole for part, whole in lost):
    examples, entities = (
      f'{part:,.10g} of {whole:,.10g} {what} ({part / max(whole, 1):.1%})'
      for (part, whole), what in zip(lost, ('examples', 'entities'), strict=True))
    with_them = '' if asks_text(summary) else f', and with them {entities}'
    yield (
      f'{examples} of the training and validation {"rows" if asks_text(summary) else "notes"} are '
      f'longer than config.data.max_length and were left out{with_them}; raise '
      'config.data.max_length')


def no_format(summary: Summary) -> Iterator[str]:
  """Zero-shot scores that say nothing."""
  if zero_shot_left_out(summary):
    found = rates(summary['zero_shot'], summary['zero_shot']['scores'])
    yield (
      'zero-shot: strict F1 is 0 since the untrained model does not follow the format of answers '
      f'({found.unreadable:,.10g} of {found.asked:,.10g} unreadable); tables leave it out')


def same_answers(summary: Summary, predictions: Path | None) -> Iterator[str]:
  """Sites at which an own task's answers are all the same, although their targets are not.

  The answer is not quoted: it may be words of a note.
  """
  found = []
  for site in summary['scores'] if predictions and asks_text(summary) else ():
    records = of_rows(read_lines(predictions / f'{site}.jsonl')).values()
    answers, targets = (
      {record[key].strip() for record in records} for key in ('generated', 'target'))
    if len(answers) == 1 and len(targets) > 1:
      found.append(site + ' (an empty one)' * (answers == {''}))
  if found:
    more = f' and {len(found) - _NAMED} more' if len(found) > _NAMED else ''
    yield (
      f'all rows have the same answer at {", ".join(found[:_NAMED])}{more}, and unlike targets' + (
        ': the model has not learnt the task; train longer' if summary.get('local_steps') else ''))


def zero_shot_left_out(summary: Summary) -> bool:
  """Whether zero-shot F1 is 0 everywhere because the format of answers was not followed."""
  zero_shot = summary.get('zero_shot')
  found = zero_shot and rates(zero_shot, zero_shot['scores'])
  if not found or found.unreadable_share <= UNREADABLE:
    return False
  return not any(
    entry['strict']['typed']['f1'] for tasks in zero_shot['scores'].values()
    for task, scores in tasks.items() if task != TEXT
    for entry in ([scores] if task == 'ner' else scores.values()))

"""A run's numbers as points: {tag: value} of a round, and of the final scores.

They are what every tracker shows (`trackers.py`): numbers, names of sites, tasks, types and
metrics, and no text of notes.
"""

import math
from collections.abc import Iterator, Sequence

from fedmedjax.data.text_task import TEXT

# With more sites than these, there are no curves of single sites.
_SITES = 50
# Keys of a round's line: those with one number, and those with a number for each site.
_NUMBERS = (
  'seconds', 'simulated_seconds', 'local_steps', 'examples', 'tokens', 'bytes_up', 'bytes_down',
  'useful_step_share', 'step_norm', 'product_gap', 'validation_f1')
_OF_SITES = ('train_loss', 'validation_loss', 'weights', 'update_norm', 'cosine')


def of_round(lines: Sequence[dict], sites: Sequence[str]) -> dict[str, float]:
  """The points of the last of `lines`, without what it does not have.

  Args:
    lines: of metrics.jsonl, those of all rounds so far.
    sites: the names of all sites that train.
  """
  return _known(_values(lines[-1], len(sites) <= _SITES))


def of_scores(scores: dict) -> dict[str, float]:
  """The typed F1 of every task and site, strict and lenient, and metrics of texts."""
  return _known(_scores(scores))


def seconds(lines: Sequence[dict]) -> float:
  """Seconds that these rounds took."""
  return sum(line['seconds'] for line in lines)


def _known(values: Iterator[tuple[str, float | None]]) -> dict[str, float]:
  return {tag: value for tag, value in values if value is not None and math.isfinite(value)}


def _values(line: dict, each: bool) -> Iterator[tuple[str, float | None]]:
  """(tag, value) of a round; with `each`, also those of single sites."""
  yield from ((f'round/{key}', line.get(key)) for key in _NUMBERS)
  for key in _OF_SITES:
    values = line.get(key) or ()
    known = [value for value in values if value is not None]
    yield f'mean/{key}', sum(known) / len(known) if known else None
    if each:
      yield from zip((f'{key}/{site}' for site in line['sites']), values, strict=False)


def _scores(scores: dict, name: str = 'f1') -> Iterator[tuple[str, float]]:
  for key, entry in scores.items():
    _, _, site = name.partition('/')
    if site and key == TEXT:
      yield from (
        (f'score/{site}/{key}/{metric}', found['value']) for metric, found in entry.items())
    elif 'typed' in entry:
      yield f'{name}/{key}', entry['typed']['f1']
    elif key != 'per_type':
      yield from _scores(entry, f'{name}/{key}')

"""Scores of a site as its policy lets them leave, and as the server reads them.

The fields of the answer to the question 'score':
  measures  {'ner', 're.modifier', ...: {'counts': [[right, wrong, missed] strictly, and leniently],
            'ci95': [[low, high] or null, likewise]}}, over all types; of texts {'text.METRIC':
            {'value': number, 'ci95': [low, high] or null}}
  sources   number of tested articles, patients or notes; null = it stays
  answers   {'asked', 'copied', 'unreadable'}; null = it stays
  kept      why some of it stays; '' = nothing does
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.data.text_task import TEXT
from fedmedjax.deploy import messages
from fedmedjax.deploy.policy import Policy
from fedmedjax.deploy.scoring import Scored
from fedmedjax.eval import metrics
from fedmedjax.eval.metrics import KINDS
from fedmedjax.report.measures import MEASURES

_RATES = ('asked', 'copied', 'unreadable')
# Of a stranger: the longest name of a metric, and most of them.
_LONGEST, _MOST = 64, 64
_TYPED = metrics.AVERAGES.index('typed')


class Heard(NamedTuple):
  """What a site has told of its scores, in the form of summary.json."""

  scores: dict[str, Any]
  sources: int | None
  answers: dict[str, int] | None
  kept: str


def told_scores(policy: Policy, site: str, scored: Scored) -> dict[str, Any]:
  """The fields of the answer.

  A score is told where `smallest_count` test examples or more stand behind it and as many annotated
  entities, and where as many were found, or none.
  """
  least, tasks = policy.smallest_count, scored.summary['scores'][site]
  nothing = {'measures': {}, 'sources': None, 'answers': None}
  if not policy.scores:
    return {**nothing, 'kept': 'its policy keeps them (scores)'}
  few = f'fewer than {least} test examples or entities stand behind them (smallest_count)'
  if scored.examples < least:
    return {**nothing, 'kept': few}
  told: dict[str, Any] = {}
  for measure in MEASURES:
    entry = measure.find(tasks)
    if entry is None:
      continue
    counts = scored.counts[measure.counted].counts.sum(axis=0)[:, :-1].sum(axis=1)
    right, wrong, missed = counts[0].tolist()
    if right + missed >= least and not 0 < right + wrong < least:
      told[measure.counted] = {
        'counts': counts.astype(int).tolist(),
        'ci95': [entry[kind]['typed']['ci95'] for kind in KINDS]}
  for name, entry in tasks.get(TEXT, {}).items():
    told[f'{TEXT}.{name}'] = {'value': entry['value'], 'ci95': entry['ci95']}
  answers, sources = scored.summary['answers'][site], scored.summary['test_sources'][0]
  complete = len(told) == sum(1 for one in MEASURES if one.find(tasks)) + len(tasks.get(TEXT, {}))
  return {
    'measures': told, 'sources': sources if sources >= least else None,
    'answers': answers if answers['asked'] >= least else None, 'kept': '' if complete else few}


def heard_scores(fields: Mapping[str, Any]) -> Heard | None:
  """What the server makes of an answer; None = it has another form. Nothing is raised."""
  try:
    scores: dict[str, Any] = {}
    if len(fields['measures']) > _MOST:
      raise ValueError('too many scores')
    for name, entry in fields['measures'].items():
      _add(scores, name, entry)
    sources, answers = fields['sources'], fields['answers']
    if sources is not None:
      sources = _whole(sources)
    if answers is not None:
      answers = {key: _whole(answers[key]) for key in _RATES}
      if max(answers.values()) > answers['asked']:
        raise ValueError('more answers than questions')
    return Heard(scores, sources, answers, messages.shown(fields['kept']))
  except (AttributeError, KeyError, TypeError, ValueError):
    return None


def _add(scores: dict[str, Any], name: str, entry: Mapping[str, Any]) -> None:
  """Adds one score, as the report's tables find it; ValueError and the like where it is none."""
  task, _, part = name.partition('.')
  if task == TEXT:
    if not part.isprintable() or not 0 < len(part) <= _LONGEST:
      raise ValueError('no name of a metric')
    scores.setdefault(TEXT, {})[part] = {
      'value': _number(entry['value']), 'ci95': _interval(entry['ci95'])}
    return
  if name not in (measure.counted for measure in MEASURES):
    raise ValueError('an unknown score')
  counts = np.asarray([[_whole(count) for count in row] for row in entry['counts']])
  if counts.shape != (len(KINDS), 3):
    raise ValueError('no counts')
  # One type, and nothing of the types merged.
  ratios = metrics.averages(np.stack([counts, np.zeros_like(counts)], axis=1))[:, _TYPED]
  found = {
    kind: {'typed': {**dict(zip(('precision', 'recall', 'f1'), row.tolist(), strict=True)),
                     'ci95': _interval(bounds)}}
    for kind, row, bounds in zip(KINDS, ratios, entry['ci95'], strict=True)} | {'per_type': {}}
  if part:
    scores.setdefault(task, {})[part] = found
  else:
    scores[task] = found


def _whole(value: Any) -> int:
  if type(value) is not int or not 0 <= value < 2**53:
    raise ValueError('no count')
  return value


def _number(value: Any) -> float:
  found = messages.number({'': value}, '')
  if found is None:
    raise ValueError('no number')
  return float(found)


def _interval(bounds: Sequence | None) -> list[float] | None:
  if bounds is None:
    return None
  low, high = map(_number, bounds)
  if low > high:
    raise ValueError('no interval')
  return [low, high]

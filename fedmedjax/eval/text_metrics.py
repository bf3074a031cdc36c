"""Scores of the task 'text': how near the texts that a model wrote are to those wanted.

A metric that is a mean over rows has counts in the form of `metrics.py`: of a source with n rows
and the sum s, tp = s and fp = fn = n - s, whose F1 is s / n, whatever the sign and size of s. So
one bootstrap and one way to compare runs serve all tasks. 'macro_f1' has the counts of each label.

Letters: N sources (see `data/sources.py`), n rows, A adapters that answered, T labels.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.data.scripts import words
from fedmedjax.data.site import SiteData
from fedmedjax.data.text_task import TEXT
from fedmedjax.eval import metrics
from fedmedjax.eval.own_metric import OwnMetric, own_values
from fedmedjax.types import Example, InputError

_LIMITS = (0.0, 1.0)  # of the metrics below
_FREE = (-np.inf, np.inf)  # of the user's own
# Most labels, since every draw of the bootstrap has all of them; and most entries of a table of
# sources and labels, 6 numbers of each of which go to a file.
_MOST_LABELS, _MOST_COUNTS = 1000, 1_000_000
_END = re.compile(r'\s*[.!?,;:]$')


def label(text: str) -> str:
  """A text as a label: without blanks at its ends and a final . ! ? , ; or :, case folded.

  Runs of blanks are one. A text that is nothing but such a mark stays as it is.
  """
  text = ' '.join(text.casefold().split())
  return _END.sub('', text) or text


def exact_match(answer: str, target: str) -> float:
  """1 where the answer is the target, but for blanks at the ends, else 0."""
  return float(answer.strip() == target.strip())


def _accuracy(answer: str, target: str) -> float:
  return float(label(answer) == label(target))


def rouge_words(text: str) -> list[str]:
  """The words of a text in small letters; of ASCII, those that rouge-score itself would find."""
  return [
    part for word in words(text.lower()) for part in word.split('_')
    if any(map(str.isalnum, part))]


class _Words:
  """What rouge-score asks for words, in place of its own rules, which drop all but ASCII."""

  def tokenize(self, text: str) -> list[str]:
    return rouge_words(text)


@functools.cache
def _scorer() -> Any:
  # Imported here: it takes seconds, and is there only with the extra 'rouge'.
  from rouge_score.rouge_scorer import RougeScorer
  return RougeScorer(['rougeL'], use_stemmer=False, tokenizer=_Words())


def _rouge_l(answer: str, target: str) -> float:
  return float(_scorer().score(target, answer)['rougeL'].fmeasure)


# Means over rows: (answer, target) -> a number.
_BY_ROW: dict[str, Callable[[str, str], float]] = {
  'exact_match': exact_match, 'accuracy': _accuracy, 'rouge_l': _rouge_l}
_MACRO = 'macro_f1'
# Values of config.eval.metrics.
METRICS = ('exact_match', 'accuracy', _MACRO, 'rouge_l')


class TextMetrics(NamedTuple):
  """What answers of the task are judged by, in the order of summary.json."""

  names: tuple[str, ...] = ('exact_match',)  # some of METRICS
  own: OwnMetric | None = None

  def headline(self) -> 'TextMetrics':
    """The first alone; of a metric of the user's own all that it gives, in its order."""
    return TextMetrics(self.names[:1], None if self.names else self.own)


USUAL = TextMetrics()


def average(score: str) -> str:
  """The average of `metrics.averages` that a score of this name is, such as 'text.macro_f1'."""
  return 'macro' if score == f'{TEXT}.{_MACRO}' else 'typed'


def limits(score: str) -> tuple[float, float]:
  """The least and the largest value that a score of this name can have, such as 'ner'."""
  task, _, name = score.partition('.')
  return _FREE if task == TEXT and name not in METRICS else _LIMITS


def score(
  text: TextMetrics, site: str, rows: Sequence[Example], answers: Sequence[Sequence[dict]],
  seed: int, samples: int,
) -> tuple[dict[str, dict], dict[str, np.ndarray]]:
  """({metric: {'value', 'ci95'}}, {'text.METRIC': counts f64[N, 2, T + 1, 3]}) of a site.

  A metric of the user's own that gives one number for the whole site has no counts, and its 'ci95'
  is None, as it is with a single source and where nothing varies.

  Args:
    text: the metrics.
    site: its name, for messages.
    rows: the n rows that were asked about.
    answers: the prediction records of each adapter, others among them; counts add up over adapters,
      and a number for the whole site is the mean over them.
    seed, samples: of the bootstrap.
  """
  targets = [row.target or '' for row in rows]
  sources = {name: place for place, name in enumerate(dict.fromkeys(map(_source, rows)))}
  source = np.array([sources[_source(row)] for row in rows], int)
  generated = [_generated(rows, records) for records in answers]
  scores, counts = {}, {}

  def add(name: str, table: np.ndarray, value: float) -> None:
    key = f'{TEXT}.{name}'
    place = metrics.KINDS.index('strict'), metrics.AVERAGES.index(average(key))
    counts[key] = table
    interval = metrics.bootstrap_f1(table, seed, samples, limits(key))[place]
    scores[name] = {
      'value': value, 'ci95': interval.tolist() if np.isfinite(interval).all() else None}

  def add_mean(name: str, values: np.ndarray) -> None:
    add(name, _mean_counts(values, source, len(sources)), float(values.mean()))
    if np.ptp(values) == 0:  # roundings of large numbers would look like a spread
      scores[name]['ci95'] = None

  for name in text.names:
    if name == _MACRO:
      table = _label_counts(text, site, targets, generated, source, len(sources))
      macro = metrics.AVERAGES.index('macro')
      add(name, table, float(metrics.averages(table.sum(0))[0, macro, 2]))
    else:
      add_mean(name, np.array([
        [_BY_ROW[name](*pair) for pair in zip(given, targets, strict=True)]
        for given in generated]))
  if text.own:
    given = [
      own_values(text.own, f'site {site!r}', one, targets, METRICS) for one in generated]
    for name in given[0]:
      values = np.stack([one[name] for one in given])
      if values.ndim == 2:
        add_mean(name, values)
      else:
        scores[name] = {'value': float(values.mean()), 'ci95': None}
  return scores, counts


def _source(row: Example) -> str:
  return row.source or row.document


def _generated(rows: Sequence[Example], records: Sequence[dict]) -> list[str]:
  """What an adapter wrote about each of the rows."""
  texts = {(record['document'], record['sentence_start']): record['generated']
           for record in records if record['task'] == TEXT}
  return [texts[row.document, row.start] for row in rows]


def _mean_counts(values: np.ndarray, source: np.ndarray, number: int) -> np.ndarray:
  """Counts of a mean over rows, f64[N, 2, 2, 3].

  Args:
    values: f64[A, n].
    source: i[n], of each row.
    number: N.
  """
  total = np.bincount(source, values.sum(0), number)
  rest = np.bincount(source, minlength=number) * len(values) - total
  return np.tile(np.stack([total, rest, rest], -1)[:, None, None], (1, 2, 2, 1))


def _label_counts(
  text: TextMetrics, site: str, targets: Sequence[str], answers: Sequence[Sequence[str]],
  source: np.ndarray, number: int,
) -> np.ndarray:
  """Counts of each label that is a target, then of all of them, f64[N, 2, T + 1, 3].

  An answer that is no such label misses its target, and nothing else.
  """
  wanted = [label(target) for target in targets]
  places = {name: place for place, name in enumerate(dict.fromkeys(wanted))}
  if len(places) > _MOST_LABELS or len(places) * number > _MOST_COUNTS:
    raise InputError(
      f'config.eval.metrics={text.names!r}: site {site!r} has {len(places)} different targets from '
      f'{number} sources, too many to be labels of {_MACRO}; leave it out')
  counts = np.zeros((number, len(places) + 1, 3))
  for given in answers:
    for row, target, answer in zip(source, wanted, map(label, given), strict=True):
      if answer == target:
        counts[row, places[target], 0] += 1
        continue
      counts[row, places[target], 2] += 1
      if answer in places:
        counts[row, places[answer], 1] += 1
  counts[:, -1] = counts.sum(1)
  return np.stack([counts, counts], 1)


def tried(text: TextMetrics, sites: Sequence[SiteData]) -> TextMetrics:
  """The metrics, tried on the rows that these sites are tested on, before any model has answered.

  The answers are the targets themselves, then empty texts: both will occur.

  Raises:
    InputError: a metric of the user's own fails or gives what cannot be used, or there are too many
      labels.
  """
  for site in sites:
    for part in site.tasks:
      if part.ask.task != TEXT or not part.test:
        continue
      targets = [row.target or '' for row in part.test]
      if _MACRO in text.names:
        sources = len(set(map(_source, part.test)))
        _label_counts(text, site.name, targets, [], np.zeros(0, int), sources)
      if text.own is None:
        continue
      for what, answers in (
          ('its targets as answers', targets), ('empty answers', [''] * len(targets))):
        found = own_values(
          text.own, f'site {site.name!r}, tried with {what}', answers, targets, METRICS)
        text = text._replace(own=text.own._replace(gives={
          name: value.ndim == 1 for name, value in found.items()}))
  return text

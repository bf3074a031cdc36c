"""The scores that tables and drawings show: their names, and where a run's files hold them.

Those of extraction are F1 of spans, each strict and lenient. Those of an own task
(config.data.tasks=('text',)) have one value each, under names that a run chooses.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fedmedjax.data.text_task import TEXT

# A metric of own tasks -> its name in sentences, and what it says.
_TEXTS = {
  'exact_match': (
    'exact match', 'share of answers that are their target, but for blanks at the ends'),
  'accuracy': ('accuracy', 'share of answers that are their target, read as labels'),
  'macro_f1': ('macro F1', 'F1 of each label that occurs among the targets, and of these the mean'),
  'rouge_l': ('ROUGE-L', 'the longest common sequence of words of answer and target, as F1'),
}


class Value(NamedTuple):
  """A score and its 95 % interval, None where there is none."""

  value: float
  low: float | None = None
  high: float | None = None


class Measure(NamedTuple):
  """A score, such as that of entities."""

  key: str                              # a word, different for each, for drawings
  title: str
  note: str                             # what is scored, in words
  counted: str                          # its name in counts.json
  find: Callable[[Mapping], Any]        # (scores of a site) -> entry of summary.json, if any
  name: str                             # the title in sentences
  kinds: tuple[str, ...] = ('strict', 'lenient')  # ('',) = it has one value alone
  shipped: bool = True                  # False = a user's own: more may be better, or less

  @property
  def of_text(self) -> bool:
    """Whether it is a score of an own task."""
    return self.kinds == ('',)

  def at(self, tasks: Mapping, kind: str = '') -> Value | None:
    """The score in the scores of a site, of the first kind unless another is named."""
    entry = self.find(tasks)
    if not entry:
      return None
    if self.of_text:
      return Value(entry['value'], *(entry.get('ci95') or ()))
    typed = entry[kind or self.kinds[0]]['typed']
    return Value(typed['f1'], *(typed.get('ci95') or ()))

  def titled(self, kind: str = '') -> str:
    """'Entities: strict F1', or 'Exact match'."""
    return self.title if self.of_text else f'{self.title}: {f"{kind} F1".strip()}'

  @property
  def words(self) -> str:
    """'strict F1 of entities', or 'exact match'."""
    return self.name if self.of_text else f'{self.kinds[0]} F1 of {self.name}'

  @property
  def unit(self) -> str:
    """What an axis measures."""
    return self.name if self.of_text else 'typed F1'


def _entities(tasks: Mapping) -> dict | None:
  return tasks.get('ner')


def _relations(name: str) -> Callable[[Mapping], dict | None]:
  return lambda tasks: tasks.get('re', {}).get(name)


MEASURES = (
  Measure('ner', 'Entities', 'entities of the annotated types found in a sentence', 'ner',
          _entities, 'entities'),
  Measure('modifier', 'Modifiers', 'what modifies a main entity that the annotation gives',
          're.modifier', _relations('modifier'), 'modifiers'),
  Measure('triple', 'Triples', 'pairs of a given main entity and its modifier, typed by both',
          're.triple', _relations('triple'), 'triples'),
  Measure('end_to_end', 'End to end',
          'such pairs with the main entities that the model found itself', 're.end_to_end',
          _relations('end_to_end'), 'end to end'),
)
# Those of entities and modifiers, which by type and across sites are enough.
BY_TYPE = MEASURES[:2]


def text_measure(metric: str, place: int = 0) -> Measure:
  """The measure of a metric of an own task.

  Args:
    metric: its name in summary.json.
    place: its number among the metrics of a run.
  """
  name, note = _TEXTS.get(metric, (metric, 'a metric of your own (config.eval.metric)'))
  return Measure(
    f'{TEXT}{place}', name[0].upper() + name[1:] if metric in _TEXTS else name, note,
    f'{TEXT}.{metric}', lambda tasks: tasks.get(TEXT, {}).get(metric), name, ('',),
    metric in _TEXTS)


def measures_of(scored: Iterable[Mapping]) -> list[Measure]:
  """The measures that any of these scores of sites has, in their order."""
  scored = list(scored)
  own = dict.fromkeys(metric for tasks in scored for metric in tasks.get(TEXT, ()))
  return [measure for measure in MEASURES if any(map(measure.find, scored))] + [
    text_measure(metric, place) for place, metric in enumerate(own)]


def asks_text(summary: Mapping) -> bool:
  """Whether a run's task is one of the user's own."""
  return any(TEXT in tasks for tasks in summary['scores'].values())


def unit_of(summaries: Sequence[Mapping]) -> str:
  """What is asked about in runs: 'sentence', or 'row' in own tasks."""
  return 'row' if any(map(asks_text, summaries)) else 'sentence'

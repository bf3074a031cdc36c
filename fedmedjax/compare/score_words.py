"""What sentences and tables call the scores that runs are compared by."""

from fedmedjax.report.measures import TEXT, Measure, text_measure

# Score of extraction -> its name in sentences.
WORDS = {
  'ner': 'entities', 're.modifier': 'modifiers', 're.triple': 'triples',
  're.end_to_end': 'relations end to end'}


def text_score(score: str) -> Measure | None:
  """The measure of an own task that a name of counts.json stands for; None = of extraction."""
  task, _, metric = score.partition('.')
  return text_measure(metric) if task == TEXT else None


def score_name(score: str) -> str:
  """'entities', 'exact match'."""
  own = text_score(score)
  return own.name if own else WORDS[score]


def score_title(score: str) -> str:
  """'Entities', 'Exact match'."""
  own = text_score(score)
  return own.title if own else WORDS[score][0].upper() + WORDS[score][1:]


def figure_name(score: str) -> str:
  """What the figures of a table are: 'Typed strict F1', 'Exact match'."""
  own = text_score(score)
  return own.title if own else 'Typed strict F1'


def score_phrase(score: str) -> str:
  """'strict F1 of entities', 'exact match'."""
  own = text_score(score)
  return own.name if own else f'strict F1 of {WORDS[score]}'


def ends(score: str) -> tuple[str, str]:
  """What the least and the largest of several scores are called; of a metric of one's own, less may
  be better."""
  own = text_score(score)
  return ('lowest', 'highest') if own and not own.shipped else ('worst', 'best')

"""The outline of a site whose notes another process reads: how many examples, and how long.

From it the steps of all rounds, their shapes, the bytes of messages and all counts follow as from
the notes themselves, so that every process plans the same rounds. Words and tokens are not in it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedmedjax.data.labels import LabelExample
from fedmedjax.data.site import SiteData, TaskData
from fedmedjax.data.tasks import Ask
from fedmedjax.data.tokenize import TokenExample
from fedmedjax.types import Example


def outline(site: SiteData) -> dict[str, Any]:
  """The outline of a site, as JSON values."""
  # Of all tasks together: the same sentence has the same number in each.
  tested, watched = {}, {}
  return {
    'name': site.name, 'types': list(site.types), 'report': dict(site.report),
    'tasks': [{
      'task': part.ask.task, 'instruction': len(part.instruction),
      'train': _lengths(part.train), 'validation': _lengths(part.validation),
      'solved': len(part.solved), 'test': _places(part.test, tested),
      'watched': _places(part.watched, watched),
      # Numbers, since names may be of patients.
      'units': [list(dict.fromkeys(part.units)).index(name) for name in part.units],
    } for part in site.tasks]}


def restored(found: dict[str, Any], ask: Callable[[str], Ask], labels: bool) -> SiteData:
  """A site with stand-ins of equal lengths in place of examples; see `outline`.

  Args:
    found: an outline.
    ask: (task) -> how the site is asked.
    labels: whether examples are `LabelExample`s.
  """
  stand_in = _label_example if labels else _token_example
  return SiteData(found['name'], tuple(found['types']), tuple(TaskData(
    ask(part['task']), np.zeros(part['instruction'], np.int32),
    *(tuple(stand_in(*lengths) for lengths in part[key]) for key in ('train', 'validation')),
    _stand_ins(part['test']), (), _stand_ins(range(part['solved'])), _stand_ins(part['watched']),
    units=tuple(map(str, part['units'])))
    for part in found['tasks']), dict(found['report']))


def _lengths(examples: Sequence[Any]) -> list[list[int]]:
  """Of each example: its tokens, and those before its target, or its labelled words."""
  return [[len(one.tokens), int(one.prompt_length) if isinstance(one, TokenExample) else len(
    one.places)] for one in examples]


def _places(examples: Sequence[Example], places: dict[tuple[str, int], int]) -> list[int]:
  """The number of the sentence that each example is about, in the order of their first times.

  `places` are those that have a number already; new ones are added.
  """
  return [places.setdefault((one.document, one.start), len(places)) for one in examples]


def _stand_ins(places: Sequence[int]) -> tuple[Example, ...]:
  return tuple(Example('', place, '', ()) for place in places)


def _token_example(tokens: int, prompt: int) -> TokenExample:
  return TokenExample(_blank(tokens), prompt)


def _label_example(tokens: int, words: int) -> LabelExample:
  return LabelExample(_blank(tokens), _blank(words), _blank(words), np.zeros((0, 2), np.int32))


def _blank(count: int) -> np.ndarray:
  """i32[count] of one zero, which takes no memory."""
  return np.broadcast_to(np.int32(0), count)

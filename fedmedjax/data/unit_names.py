"""Which unit of privacy an example is of: a sentence, a note or a patient."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from fedmedjax.types import Example

UNITS = ('example', 'note', 'patient')


def unit_name(kind: str, example: Example) -> str:
  """The sentence, the note or the patient that an example is of.

  A sentence has one example for each of its main entities, or one for each window of it. Where
  sentences of a note stand for notes (`pieces.py`), they are of the note all the same.
  """
  if kind == 'example':
    return f'{example.document}:{example.start}'
  name = example.document if kind == 'note' else example.source or example.document
  return name.partition('#')[0]


def rows_of_units(
  encode: Callable[[list[Example]], list], found: list[Example],
  unit_of: Callable[[Example], str] | None,
) -> tuple[list, list[str]]:
  """The token sequences of examples, and the unit of each; without `unit_of` no units.

  Args:
    encode: (examples) -> their token sequences; of some there are none, of others several.
    found: the examples.
    unit_of: (example) -> the name of its unit.
  """
  if unit_of is None:
    return encode(found), []
  rows = [encode([example]) for example in found]
  return [row for own in rows for row in own], [
    unit_of(example) for example, own in zip(found, rows, strict=True) for _ in own]


def first_of_each(order: np.ndarray, owners: Sequence[str], most: int) -> np.ndarray:
  """The first `most` examples of each owner in an order of examples; 0 = all of them.

  Args:
    order: i[n], places of examples.
    owners: of the example at each place.
    most: of each owner.
  """
  taken: Counter[str] = Counter()
  kept = []
  for place in order if most else ():
    taken[owners[place]] += 1
    if taken[owners[place]] <= most:
      kept.append(place)
  return np.asarray(kept, int) if most else order

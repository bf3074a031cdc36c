"""A step's examples in groups that are computed one after the other, where memory is short."""

from collections.abc import Sequence


def groups_needed(steps: Sequence[Sequence], micro_batch: int) -> int:
  """The number of groups of every step: so many that none has more than `micro_batch` examples.

  Args:
    steps: the examples of each step.
    micro_batch: the most examples of a group; 0 = all, so that there is one group.
  """
  return -(-max(map(len, steps)) // micro_batch) if micro_batch else 1


def deal(examples: Sequence, groups: int) -> list[list]:
  """A step's examples dealt out to `groups`, which then hold like numbers of examples and tokens.

  From the longest to the shortest, to and fro, so that numbers of examples differ by one at most.
  With fewer examples than groups the others stay empty. A single group keeps its order.
  """
  if groups == 1:
    return [list(examples)]
  dealt: list[list] = [[] for _ in range(groups)]
  for place, example in enumerate(
      sorted(examples, key=lambda example: len(example.tokens), reverse=True)):
    turn, seat = divmod(place, groups)
    dealt[groups - 1 - seat if turn % 2 else seat].append(example)
  return dealt

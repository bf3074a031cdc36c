"""A step's examples in groups: who is in which, and what each group's arrays hold."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedmedjax.data import pack
from fedmedjax.data.groups import deal, groups_needed
from fedmedjax.data.label_steps import label_batch
from fedmedjax.data.labels import LabelExample
from fedmedjax.data.layout import in_groups, rows_layout
from fedmedjax.data.tokenize import TokenExample

INSTRUCTION = np.array([7, 8, 9], np.int32)


def sized(*lengths):
  """Examples of so many tokens, of which the first two are the prompt."""
  return [TokenExample(np.full(n, n, np.int32), 2) for n in lengths]


def lengths(dealt):
  return [[len(example.tokens) for example in group] for group in dealt]


def test_groups_hold_like_numbers_and_lengths():
  """9 8 | 7 6 | 5 to and fro: 9, then 6 and 5, against 8 and 7; of three groups 9 4 3, 8 5, 7 6."""
  assert lengths(deal(sized(5, 9, 7, 8, 6), 2)) == [[9, 6, 5], [8, 7]]
  assert lengths(deal(sized(3, 4, 5, 6, 7, 8, 9), 3)) == [[9, 4, 3], [8, 5], [7, 6]]
  assert lengths(deal(sized(5), 3)) == [[5], [], []]
  assert lengths(deal(sized(5, 9, 7), 1)) == [[5, 9, 7]]  # as they came


@pytest.mark.parametrize('micro_batch, groups', [
  (0, 1), (1, 8), (2, 4), (3, 3), (4, 2), (7, 2), (8, 1), (9, 1)])
def test_no_group_has_more_than_the_micro_batch(micro_batch, groups):
  """The largest of the steps has 8 examples."""
  steps = [sized(*range(3, 3 + count)) for count in (7, 8, 1)]
  assert groups_needed(steps, micro_batch) == groups
  for step in steps:
    sizes = [len(group) for group in deal(step, groups)]
    assert max(sizes) <= (micro_batch or 8) and max(sizes) - min(sizes) <= 1
    assert sum(sizes) == len(step)


@pytest.mark.parametrize('loss_on', pack.LOSS_ON)
def test_every_group_has_the_instruction_and_its_own_targets(loss_on):
  """Examples of 8, 6, 5 and 3 tokens: 8 and 3 against 6 and 5. A completion has its tokens but two;
  of 'all' each token but the first counts, and the instruction once an example: 2 + 2 of it, as in
  one group of 4."""
  examples, part = sized(6, 3, 8, 5), SimpleNamespace(instruction=INSTRUCTION)
  whole = rows_layout(pack.RowShape(16, 2, 16, 32), loss_on)
  layout = rows_layout(pack.RowShape(16, 1, 16, 16), loss_on, groups=2)
  one, two = whole.pack(part, examples), layout.pack(part, examples)
  assert two.tokens.shape == (2, 1, 16) and layout.groups == 2 and one.tokens.shape == (2, 16)
  assert two.prefix[:, :3].tolist() == [[7, 8, -1]] * 2
  assert two.segments[:, 0, :12].tolist() == [[1] * 8 + [2] * 3 + [0], [1] * 6 + [2] * 5 + [0]]
  per_group = {'completion': [6 + 1, 4 + 3], 'all': [7 + 2, 5 + 4]}[loss_on]
  assert two.target_weight.sum(axis=1).tolist() == per_group
  assert not two.target_row.any()  # its own rows, not those of the step
  for name in ('target_weight', 'prefix_weight'):
    assert getattr(two, name).sum() == getattr(one, name).sum(), name
  if loss_on == 'all':
    assert two.prefix_weight[:, :3].tolist() == [[2, 2, 0]] * 2
    # Fewer examples than groups: the instruction of an empty one does not count.
    assert layout.pack(part, sized(4)).prefix_weight[:, :3].tolist() == [[1, 1, 0], [0, 0, 0]]
  assert not layout.blank.target_weight.any() and layout.blank.tokens.shape == two.tokens.shape


def test_buckets_of_groups_hold_what_every_group_needs():
  """Groups of 30 and 20 tokens fit a bucket of width 32, of 40 and 20 they do not, though as one
  step of two rows of 32 the latter would not either; the shape saves in each of the groups."""
  part = SimpleNamespace(instruction=INSTRUCTION)
  small, whole = pack.RowShape(16, 1, 32, 32), pack.RowShape(16, 1, 64, 64)
  layout = rows_layout(whole, 'completion', (small,), groups=2)
  (bucket,) = layout.shape_buckets
  fits, exceeds = (layout.pack(part, sized(*sizes)) for sizes in ((30, 20), (40, 20)))
  assert bucket.holds(fits) and not bucket.holds(exceeds)
  # One group alone would fit.
  assert pack.in_bucket(small, type(exceeds)(*(leaf[1] for leaf in exceeds)))
  cut = bucket.cut(fits)
  assert cut.tokens.shape == (2, 1, 32) and cut.target_weight.sum() == fits.target_weight.sum()
  steps = [sized(30, 20)] * 100 + [sized(40, 20)] * 20
  # 100 steps of two groups save 2 * 32 tokens each, and some attention; those of one group half.
  (found,) = pack.smaller_shapes(steps, [2] * 120, whole, 'completion', 1, 2)
  assert found == small
  assert pack.smaller_shapes(
    [step[:1] for step in steps], [2] * 120, whole, 'completion', 1) == ()


def test_windows_of_a_classifier_come_in_groups():
  """Three windows in two groups of two rows: weights of 3 and 1 words, and 2 in the second."""
  windows = [
    LabelExample(np.arange(1, n + 1), np.arange(n), np.ones(n, np.int32), ()) for n in (3, 2, 1)]
  batch = in_groups(
    lambda group: label_batch(group, 2, 4, np.ones(5, bool)), windows, 2)
  assert batch.tokens.shape == (2, 2, 4) and batch.allowed.shape == (2, 5)
  assert batch.weight.sum(axis=2).tolist() == [[3, 0], [2, 1]]

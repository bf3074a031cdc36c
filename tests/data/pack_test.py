"""Steps: every example once an epoch, as a function of (seed, site, step); rows that fit."""

import itertools

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmedjax.data import pack
from fedmedjax.data.tokenize import TokenExample


def test_every_example_once_an_epoch_in_nearly_equal_steps():
  lengths = np.random.default_rng(0).integers(10, 200, 43)
  steps = pack.site_steps(lengths, 8, seed=1, site=0, first=0, count=12)
  for epoch in (steps[:6], steps[6:]):
    assert sorted(np.concatenate(epoch)) == list(range(43))
    assert {len(step) for step in epoch} <= {7, 8}
  # A step is stratified by length: totals vary far less than by chance (about 0.15 of the mean).
  totals = [lengths[step].sum() for step in steps if len(step) == 8]
  assert np.std(totals) < 0.06 * np.mean(totals)


def test_steps_do_not_depend_on_where_the_asking_starts():
  lengths = np.arange(10, 60)
  whole = pack.site_steps(lengths, 4, 5, 2, 0, 40)
  part = pack.site_steps(lengths, 4, 5, 2, 17, 9)
  for a, b in zip(whole[17:26], part, strict=True):
    np.testing.assert_array_equal(a, b)
  other = pack.site_steps(lengths, 4, 5, 3, 0, 40)
  assert any((a != b).any() for a, b in zip(whole, other, strict=True))


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(40, 90))
def test_first_fit_places_every_example_once_within_the_width(lengths, width):
  rows = pack.fit_rows(lengths, width)
  assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
  assert all(sum(lengths[i] for i in row) <= width for row in rows)
  # First fit uses at most twice the rows that any packing needs.
  assert len(rows) <= 2 * -(-sum(lengths) // width) + 1


def test_a_hand_packed_step():
  """Instruction 1 2 3 4; examples 4 7|8 9 and 4 5|6 (prompt|target): one row of 8.

  The last instruction token opens each example at position 3; supervised are 7->8, 8->9 and
  5->6, at row places 1, 2 and 5.
  """
  instruction = np.array([1, 2, 3, 4], np.int32)
  members = [
    TokenExample(np.array([4, 7, 8, 9], np.int32), 2), TokenExample(np.array([4, 5, 6]), 2)]
  batch = pack.pack(instruction, members, pack.RowShape(5, 1, 8, 4), 'completion')
  assert batch.prefix.tolist() == [1, 2, 3, -1, -1]
  assert batch.tokens.tolist() == [[4, 7, 8, 9, 4, 5, 6, 0]]
  assert batch.positions.tolist() == [[3, 4, 5, 6, 3, 4, 5, 0]]
  assert batch.segments.tolist() == [[1, 1, 1, 1, 2, 2, 2, 0]]
  assert batch.target_index.tolist() == [[1, 2, 5, 0]]
  assert batch.targets.tolist() == [[8, 9, 6, 0]]
  assert batch.target_weight.tolist() == [[1, 1, 1, 0]]
  assert batch.prefix_targets.size == 0
  everything = pack.pack(instruction, members, pack.RowShape(5, 1, 8, 6), 'all')
  assert everything.prefix_targets.tolist() == [2, 3, 4, 0, 0]
  assert everything.prefix_weight.tolist() == [2, 2, 2, 0, 0]
  assert everything.target_index.tolist() == [[0, 1, 2, 4, 5, 0]]


def test_the_planned_shape_holds_every_step_and_wastes_little():
  rng = np.random.default_rng(0)
  lengths = rng.integers(20, 150, 400)
  members = [TokenExample(np.zeros(n, np.int32), n // 2) for n in lengths]
  steps = [[members[i] for i in s] for s in pack.site_steps(lengths, 8, 0, 0, 0, 50)]
  shape = pack.plan_shape(steps, 130, 'completion')
  for step in steps:
    pack.pack(np.zeros(131, np.int32), step, shape, 'completion')
  used = np.mean([sum(len(e.tokens) for e in step) for step in steps])
  assert used / (shape.rows * shape.width) > 0.75


def test_smaller_shapes_hold_the_steps_they_save_for():
  """900 steps of one example of 32 tokens and 100 of two of 60; 32 + 0 prefix, half supervised.

  Whole: 2 rows of 64 (or one of 128: more attention), 128 tokens; the small ones fit one row of 32:
  900 * 96 tokens and more are saved. A third shape would save nothing.
  """
  small = [TokenExample(np.arange(32), 16)]
  large = [TokenExample(np.arange(60), 30), TokenExample(np.arange(60), 30)]
  steps = ([small] * 9 + [large]) * 100
  none = [0] * len(steps)
  shapes = pack.plan_shapes(steps, none, 'completion', 3)
  assert shapes == (pack.RowShape(0, 1, 32, 16), pack.RowShape(0, 2, 64, 32))
  assert pack.plan_shapes(steps, none, 'completion', 1) == shapes[1:]
  assert [pack.shape_of(step, 0, shapes, 'completion') for step in (small, large)] == [0, 1]
  # More targets, or rows, than the small shape has.
  assert pack.shape_of([TokenExample(np.arange(32), 4)], 0, shapes, 'completion') == 1
  assert pack.shape_of(small * 2, 0, shapes, 'completion') == 1
  # Half of the small ones have an instruction of 300 tokens: three shapes, two of them for these.
  told = [300 if n % 2 else 0 for n in range(1000)]
  shorter, longer, whole = pack.plan_shapes(steps, told, 'completion', 3)
  assert (shorter[:3], longer[:3], whole[:3]) == ((0, 1, 32), (304, 1, 32), (304, 2, 64))
  assert pack.shape_of(small, 0, (shorter, longer, whole), 'completion') == 0
  assert pack.shape_of(small, 300, (shorter, longer, whole), 'completion') == 1
  # 40 steps save 40 * 96 tokens: less than a compilation.
  assert pack.plan_shapes(steps[:44], none[:44], 'completion', 3) == shapes[1:]


def test_a_step_is_a_corner_of_larger_arrays():
  shapes = pack.RowShape(2, 1, 8, 4), pack.RowShape(4, 2, 6, 5)
  arrays = pack.enclosing(shapes)
  assert arrays == pack.RowShape(4, 2, 8, 5)
  for shape, loss_on in itertools.product(shapes, ('completion', 'all')):
    step = pack.pack(np.arange(1, 3), [TokenExample(np.array([4, 5, 6, 7]), 2)], shape, loss_on)
    large, blank = pack.widened(step, arrays), pack.blank(arrays, loss_on)
    jax.tree.map(np.testing.assert_array_equal, pack.corner(large, shape), step)
    assert jax.tree.map(np.shape, large) == jax.tree.map(np.shape, blank)
    assert large.prefix.tolist() == [1, -1, -1, -1]
    assert large.target_weight.sum() == (2 if loss_on == 'completion' else 3)

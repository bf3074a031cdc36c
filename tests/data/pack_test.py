"""Steps: every example once an epoch, as a function of (seed, site, step); rows that fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmedjax.data import pack, step_order
from fedmedjax.data.tokenize import TokenExample


def test_every_example_once_an_epoch_in_nearly_equal_steps():
  lengths = np.random.default_rng(0).integers(10, 200, 43)
  steps = step_order.site_steps(lengths, 8, seed=1, site=0, first=0, count=12)
  for epoch in (steps[:6], steps[6:]):
    assert sorted(np.concatenate(epoch)) == list(range(43))
    assert {len(step) for step in epoch} <= {7, 8}
  # A step is stratified by length: totals vary far less than by chance (about 0.15 of the mean).
  totals = [lengths[step].sum() for step in steps if len(step) == 8]
  assert np.std(totals) < 0.06 * np.mean(totals)


def test_steps_do_not_depend_on_where_the_asking_starts():
  lengths = np.arange(10, 60)
  whole = step_order.site_steps(lengths, 4, 5, 2, 0, 40)
  part = step_order.site_steps(lengths, 4, 5, 2, 17, 9)
  for a, b in zip(whole[17:26], part, strict=True):
    np.testing.assert_array_equal(a, b)
  first_task = step_order.site_steps(lengths, 4, 5, 2, 17, 9, task=0)
  assert all((a == b).all() for a, b in zip(part, first_task, strict=True))
  other = step_order.site_steps(lengths, 4, 5, 3, 0, 40)
  assert any((a != b).any() for a, b in zip(whole, other, strict=True))


def test_every_epoch_has_steps_of_its_own():
  """Forty examples in steps of 4, five epochs: another one groups its examples anew, so that of its
  ten steps hardly one has the same four, in whatever order the steps come."""
  steps = step_order.site_steps(np.arange(10, 50), 4, seed=5, site=0, first=0, count=50)
  epochs = [{frozenset(step.tolist()) for step in steps[i:i + 10]} for i in range(0, 50, 10)]
  for i, epoch in enumerate(epochs):
    assert len(epoch) == 10
    assert all(len(epoch & other) <= 2 for other in epochs[:i])


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(40, 90))
def test_first_fit_places_every_example_once_within_the_width(lengths, width):
  rows = pack.fit_rows(lengths, width)
  assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
  assert all(sum(lengths[i] for i in row) <= width for row in rows)
  # First fit uses at most twice the rows that any packing needs.
  assert len(rows) <= 2 * -(-sum(lengths) // width) + 1


def test_first_fit_decreasing_by_hand():
  """In rows of 6: 5, 4 and 3 open a row each, 2 fills that of the 4, 1 that of the 5; of equal
  lengths the first goes first."""
  assert pack.fit_rows((2, 5, 3, 4, 1), 6) == [[1, 4], [3, 0], [2]]
  assert pack.fit_rows((3, 3, 3), 6) == [[0, 1], [2]]


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
  assert batch.target_row.tolist() == [0, 0, 0, 0]
  assert batch.target_index.tolist() == [1, 2, 5, 0]
  assert batch.targets.tolist() == [8, 9, 6, 0]
  assert batch.target_weight.tolist() == [1, 1, 1, 0]
  assert batch.prefix_targets.size == 0
  everything = pack.pack(instruction, members, pack.RowShape(5, 1, 8, 6), 'all')
  assert everything.prefix_targets.tolist() == [2, 3, 4, 0, 0]
  assert everything.prefix_weight.tolist() == [2, 2, 2, 0, 0]
  assert everything.target_index.tolist() == [0, 1, 2, 4, 5, 0]
  # In two rows of 4, and the list goes on from row to row.
  two = pack.pack(instruction, members, pack.RowShape(5, 2, 4, 4), 'completion')
  assert two.target_row.tolist() == [0, 0, 1, 0] and two.target_index.tolist() == [1, 2, 1, 0]
  assert two.targets.tolist() == [8, 9, 6, 0]


def test_the_planned_shape_holds_every_step_and_wastes_little():
  rng = np.random.default_rng(0)
  lengths = rng.integers(20, 150, 400)
  members = [TokenExample(np.zeros(n, np.int32), n // 2) for n in lengths]
  steps = [[members[i] for i in s] for s in step_order.site_steps(lengths, 8, 0, 0, 0, 50)]
  shape = pack.plan_shape(steps, 130, 'completion')
  for step in steps:
    pack.pack(np.zeros(131, np.int32), step, shape, 'completion')
  used = np.mean([sum(len(e.tokens) for e in step) for step in steps])
  assert used / (shape.rows * shape.width) > 0.75


def test_smaller_shapes_hold_the_steps_they_save_for():
  """900 steps of one example of 32 tokens and 100 of two of 60, half of all supervised.

  Whole: 2 rows of 64 (or one of 128: more attention), 128 tokens. One row of 32 holds the small
  ones and saves 900 * 96 tokens and more; a second bucket would save nothing.
  """
  small = [TokenExample(np.arange(32), 16)]
  large = [TokenExample(np.arange(60), 30), TokenExample(np.arange(60), 30)]
  steps, none = ([small] * 9 + [large]) * 100, [0] * 1000
  whole = pack.plan_shape(steps, 0, 'completion')
  assert whole == pack.RowShape(0, 2, 64, 64)
  found = pack.smaller_shapes(steps, none, whole, 'completion', 2)
  assert found == (pack.RowShape(0, 1, 32, 16),)
  assert pack.smaller_shapes(steps, none, whole, 'completion', 0) == ()
  shapes = *found, whole
  more_targets = [TokenExample(np.arange(32), 4)]
  for step, shape in ((small, 0), (large, 1), (small * 2, 1), (more_targets, 1)):
    assert pack.first_shape(step, 0, shapes, 'completion') == shapes[shape]
  # Half of the small ones have an instruction of 300 tokens: a bucket each.
  told, whole = [300 if n % 2 else 0 for n in range(1000)], whole._replace(prefix=304)
  shapes = *pack.smaller_shapes(steps, told, whole, 'completion', 2), whole
  assert [shape[:3] for shape in shapes] == [(0, 1, 32), (304, 1, 32), (304, 2, 64)]
  assert pack.first_shape(small, 300, shapes, 'completion') == shapes[1]
  assert pack.first_shape(large, 0, shapes, 'completion') == shapes[2]
  # 40 steps save 40 * 96 tokens: less than a compilation.
  assert pack.smaller_shapes(steps[:44], none[:44], whole._replace(prefix=0), 'completion', 2) == ()


@pytest.mark.parametrize('loss_on', pack.LOSS_ON)
def test_a_bucket_that_holds_a_step_has_all_of_it(loss_on, monkeypatch):
  """Every bucket that holds it, not only the one in which it was packed; whatever shapes are
  chosen, also where steps are few and large."""
  monkeypatch.setattr(pack, '_LEAST_SAVED', 1)
  rng, used = np.random.default_rng(0), 0
  for count, size in ((60, 8), (60, 3), (4, 20)):
    lengths = rng.integers(15, 160, (count, size)) // rng.integers(1, 4, (count, 1))
    steps = [[TokenExample(np.ones(n, np.int32), n // 2) for n in step] for step in lengths]
    told = rng.choice([30, 400], count)
    whole = pack.plan_shape(steps, 400, loss_on)
    smaller = pack.smaller_shapes(steps, told, whole, loss_on, 3)
    assert all(a <= b for shape in smaller for a, b in zip(shape, whole, strict=True))
    for step, prefix in zip(steps, told, strict=True):
      chosen = pack.first_shape(step, prefix, (*smaller, whole), loss_on)
      batch = pack.pack(np.ones(prefix + 1, np.int32), step, whole, loss_on, chosen.width)
      assert pack.in_bucket(chosen, batch)
      for shape in smaller:
        if pack.in_bucket(shape, batch):
          used += 1
          part = pack.bucket(shape, batch)
          for key in ('prefix_weight', 'target_weight'):
            assert getattr(part, key).sum() == getattr(batch, key).sum()
          assert (part.segments > 0).sum() == (batch.segments > 0).sum()
          assert (part.prefix >= 0).sum() == prefix
  assert used > 50


@pytest.mark.parametrize('less', [
  dict(prefix=1), dict(rows=1), dict(width=5), dict(targets=1), dict(prefix=1, width=5)])
def test_tokens_outside_of_a_bucket_are_noticed(less):
  """Two examples of 6 and 4 tokens, 2 and 1 of them supervised, in two rows; an instruction whose
  second token is number 0."""
  shape = pack.RowShape(2, 2, 6, 3)
  batch = pack.pack(np.array([2, 0, 1]), [
    TokenExample(np.arange(6), 4), TokenExample(np.arange(4), 3)], shape, 'completion')
  assert pack.in_bucket(shape, batch) and not pack.in_bucket(shape._replace(**less), batch)


def sized(*lengths: int, prompt: int = 2) -> list[TokenExample]:
  """Examples of these lengths."""
  return [TokenExample(np.arange(length), prompt) for length in lengths]


def test_the_cost_of_a_shape_by_hand():
  """16 + 2 * 64 = 144 tokens, and 2 * 64 * (16 + 64) = 10,240 pairs, of which 750 cost a token."""
  shape = pack.RowShape(16, 2, 64, 32)
  assert shape.tokens == 144
  assert shape.cost == pytest.approx(144 + 10_240 / 750, rel=1e-9)


@settings(derandomize=True, deadline=None, max_examples=60, database=None)
@given(st.lists(st.lists(st.integers(3, 70), min_size=1, max_size=20), min_size=1, max_size=3),
       st.sampled_from([0, 16, 400]))
def test_the_planned_shape_is_the_cheapest_of_eight_widths(lengths, prefix):
  """Against every width, in the order of their size, the first of equal cost."""
  steps = [sized(*step) for step in lengths]
  least = -(-max(map(max, lengths)) // 32)
  costs = {}
  for width in range(32 * least, 32 * (least + 8), 32):
    rows = max(len(pack.fit_rows(step, width)) for step in lengths)
    tokens = rows * width
    costs[width, rows] = prefix + tokens + tokens * (prefix + width) / 750
  shape = pack.plan_shape(steps, prefix, 'completion')
  assert (shape.width, shape.rows) == min(costs, key=costs.get)
  # Supervised are all tokens of an example but those of its prompt.
  most = max(sum(length - 2 for length in step) for step in lengths)
  assert shape.targets == -(-most // 16) * 16 and shape.prefix == prefix


def test_what_a_bucket_saves_in_two_thousand_steps():
  """Whole: 2 rows of 64 tokens cost 128 + 8,192 / 750 = 138.92, one row of 32 costs 33.37: a step
  saves 105.56. 54 small steps, 27 of them among the thousand that are looked at, save 5,700 tokens,
  more than the 5,000 of a compilation; 46 save 4,856."""
  small, large, whole = sized(32), sized(60, 60), pack.RowShape(0, 2, 64, 128)
  for many, chosen in ((54, 1), (46, 0)):
    steps = [small] * many + [large] * (2000 - many)
    assert len(pack.smaller_shapes(steps, [0] * 2000, whole, 'completion', 3)) == chosen


def test_what_must_be_saved_is_met_to_the_token():
  """One row of 32 costs 32 + 1,024 / 750 = 33.3653. Of a whole that costs 592 + 384 * 304 / 750 =
  747.648, seven steps save 4,999.98; of one of 496 + 448 * 272 / 750 = 658.475, eight 5,000.87.
  """
  for many, whole, chosen in (
      (7, pack.RowShape(208, 4, 96, 32), 0), (8, pack.RowShape(48, 2, 224, 32), 1)):
    found = pack.smaller_shapes([sized(32)] * many, [0] * many, whole, 'completion', 3)
    assert len(found) == chosen


def test_up_to_a_thousand_steps_are_all_looked_at_and_then_every_second():
  whole = pack.RowShape(0, 2, 64, 128)
  steps = [sized(60, 60), sized(32)] * 500
  for more, chosen in ((0, 1), (1, 0)):
    every = steps + [sized(60, 60)] * more
    assert len(pack.smaller_shapes(every, [0] * len(every), whole, 'completion', 3)) == chosen


def test_buckets_by_hand(monkeypatch):
  """Where 1,024 pairs cost as much as a token, R rows of 32 tokens cost 33 R, one of 64 tokens 68.
  """
  monkeypatch.setattr(pack, '_PAIRS_PER_TOKEN', 1024)
  one, two = sized(32), sized(32, 32)
  four = pack.RowShape(0, 4, 32, 256)
  for steps, whole, least, most, rows in (
      # 10 * 33 of two rows.
      ([one] * 10, pack.RowShape(0, 2, 32, 64), 330, 1, [(0, 1, 32)]),
      ([one] * 10, pack.RowShape(0, 2, 32, 64), 331, 1, []),
      # One row saves 30 * 99, two 40 * 66; then two rows save 10 * 66, and nothing more is saved.
      ([one] * 30 + [two] * 10, four, 660, 3, [(0, 1, 32), (0, 2, 32)]),
      ([one] * 30 + [two] * 10, four, 661, 3, [(0, 1, 32)]),
      ([one] * 30 + [two] * 10, four, 5, 3, [(0, 1, 32), (0, 2, 32)]),
      # Two rows save 20 * 66, also of those that need one; one row 10 * 99.
      ([one] * 10 + [two] * 10, four, 5, 1, [(0, 2, 32)]),
      ([one] * 10 + [two] * 10, four, 5, 2, [(0, 1, 32), (0, 2, 32)]),
      # A row of 32 holds the short ones only: 10 * 35.
      ([sized(20), sized(60)] * 10, pack.RowShape(0, 1, 64, 64), 350, 1, [(0, 1, 32)]),
      ([sized(20), sized(60)] * 10, pack.RowShape(0, 1, 64, 64), 351, 1, []),
      # Two rows of 32 cost less than one of 64.
      ([sized(30, 30)], pack.RowShape(0, 2, 64, 64), 1, 1, [(0, 2, 32)])):
    monkeypatch.setattr(pack, '_LEAST_SAVED', least)
    found = pack.smaller_shapes(steps, [0] * len(steps), whole, 'completion', most)
    assert [shape[:3] for shape in found] == rows
  # 304 + 32 + 10.5 = 346.5; with 16 tokens of instruction 49.5, which saves 20 * 297, with none of
  # them 33, which saves 10 * 313.5.
  told, whole = [0] * 10 + [16] * 10, pack.RowShape(304, 1, 32, 32)
  found = pack.smaller_shapes([one] * 20, told, whole, 'completion', 1)
  assert found == (pack.RowShape(16, 1, 32, 32),)


def test_eight_widths_are_tried(monkeypatch):
  """Without attention's cost. Ten examples of 28 tokens: the ninth width, 288, would hold all of
  them in one row; of the eight none needs less than ten rows of 32. Eleven of 23 fill the eighth.
  """
  monkeypatch.setattr(pack, '_PAIRS_PER_TOKEN', 1e9)
  assert pack.plan_shape([sized(*[28] * 10)], 0, 'completion')[1:3] == (10, 32)
  assert pack.plan_shape([sized(*[23] * 11)], 0, 'completion')[1:3] == (1, 256)


@pytest.mark.parametrize('loss_on', pack.LOSS_ON)
def test_a_blank_step_holds_nothing(loss_on):
  batch = pack.blank(pack.RowShape(3, 2, 6, 4), loss_on)
  assert batch.prefix.tolist() == [-1] * 3 and batch.tokens.shape == (2, 6)
  for empty in batch[1:]:
    assert not empty.any()


def test_a_bucket_may_be_as_wide_as_the_whole_and_only_so_many_are_chosen():
  """One row of 64 of two; and 32 of one instruction, 64 of the other, of which one is allowed."""
  whole = pack.RowShape(0, 2, 64, 128)
  steps = [sized(60), sized(60, 60)] * 100
  assert pack.smaller_shapes(steps, [0] * 200, whole, 'completion', 2) == (
    pack.RowShape(0, 1, 64, 64),)
  steps, told = [sized(20), sized(50), sized(60, 60)] * 400, [0] * 1200
  assert len(pack.smaller_shapes(steps, told, whole, 'completion', 1)) == 1
  two = pack.smaller_shapes(steps, told, whole, 'completion', 2)
  assert [shape[:3] for shape in two] == [(0, 1, 32), (0, 1, 64)]


def test_a_step_is_in_the_first_shape_with_room_in_every_direction():
  """A shape of 16, 2, 32, 16 that is full, and with room; one more of anything is too much."""
  shapes = pack.RowShape(16, 2, 32, 16), pack.RowShape(32, 4, 64, 64)
  for step, prefix, chosen in (
      (sized(32), 16, 1),  # 30 targets
      (sized(32, prompt=30), 16, 0), (sized(20, prompt=18), 3, 0),
      (sized(32, 32, prompt=30), 16, 0), (sized(32, 32, 3, prompt=30), 16, 1),
      (sized(33, prompt=31), 16, 1), (sized(32, prompt=30), 17, 1),
      (sized(18), 16, 0), (sized(19), 16, 1)):
    assert pack.first_shape(step, prefix, shapes, 'completion') == shapes[chosen]

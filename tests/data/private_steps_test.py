"""What Poisson steps draw, and what is told to the accountant of them."""

from functools import partial

import numpy as np
import pytest
from schedule_test import examples_of, plan, site, sizes, task

from fedmedjax.data import private_steps, step_order
from fedmedjax.data import schedule as schedules
from fedmedjax.data.private_steps import Draws, Units, capacity
from fedmedjax.data.unit_names import first_of_each, rows_of_units, unit_name
from fedmedjax.types import Example

EXAMPLES = Units('example')
SITE = site('a', task(40, 100, prefix=5))


def drawn_plan(units=EXAMPLES, sites=(SITE,), **changes):
  return plan(sites, units=units, **{'rounds': 20, 'local_steps': 25, 'batch_size': 6} | changes)


def batches_of(schedule) -> list[np.ndarray]:
  return [step.members for steps in schedule.plan for step in steps[0]]


def check_poisson(batches, count: int, chance: float) -> None:
  """Of 500 steps: every unit comes as often as it should, and sizes vary as a binomial's do."""
  number = len(batches)
  times = np.bincount(np.concatenate(batches), minlength=count)
  spread = np.sqrt(number * chance * (1 - chance))
  assert (abs(times - number * chance) < 4.5 * spread).all()
  assert np.var([len(batch) for batch in batches]) == pytest.approx(
    count * chance * (1 - chance), rel=0.3)
  # Whether a unit was drawn says nothing of whether it is drawn next: in epochs it comes once.
  drawn = np.array([np.isin(0, batch) for batch in batches], float)
  assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.15


def test_units_are_drawn_on_their_own_and_fixed_batches_are_noticed():
  check_poisson(batches_of(drawn_plan()), 40, 6 / 40)
  fixed = step_order.site_steps(np.ones(40), 6, 0, 0, 0, 500)
  with pytest.raises(AssertionError):
    check_poisson(fixed, 40, 6 / 40)


def test_steps_are_a_function_of_seed_round_and_site():
  one, again, longer = drawn_plan(rounds=3), drawn_plan(rounds=3), drawn_plan(rounds=5)
  for other in (again, longer):
    for ours, theirs in zip(batches_of(one), batches_of(other), strict=False):
      np.testing.assert_array_equal(ours, theirs)
  other = drawn_plan(rounds=3, seed=1)
  assert [b.tolist() for b in batches_of(one)] != [b.tolist() for b in batches_of(other)]


def test_arrays_have_one_shape_and_hold_what_was_drawn():
  """U of 1, N and M places for the longest example, whichever are drawn; 5 tokens come first."""
  schedule = drawn_plan(rounds=2, local_steps=8, batch_size=1)
  batches, mask = schedules.round_arrays(schedule, 1)
  assert mask.all() and batches.tokens.shape == (1, 8, capacity(1), 1, 16)
  found = [sorted(100 + step.members) for step in schedule.plan[1][0]]
  for tokens, segments, expected in zip(
      batches.tokens[0], batches.segments[0], found, strict=True):
    assert sorted(tokens[:, 0, 0][segments[:, 0, 0] > 0].tolist()) == expected
  drawn = schedule.layout.drawn(batches)[0]
  assert drawn.sum(-1).tolist() == [len(one) for one in found]
  assert min(map(len, found)) == 0  # a step without any unit is a step
  # V lies in the same arrays.
  held_out, group, *_ = schedules.validation_arrays(schedule)
  assert held_out.tokens.shape[1:] == batches.tokens.shape[2:]
  assert schedule.layout.drawn(held_out).sum() == len(SITE.tasks[0].validation)
  assert len(group) == 3
  assert len(examples_of(plan((SITE,)), 0)) == 40  # without units nothing is drawn


@pytest.mark.parametrize('expected', [1, 4, 64, 1000])
def test_there_is_room_for_all_but_one_step_of_a_billion(expected):
  """By brute force: the tail of Poisson(expected) beyond the room."""
  logs = lambda k: k * np.log(expected) - expected - np.cumsum(np.log(np.arange(1, 4000)))[k - 1]  # noqa: E731
  most = capacity(expected)
  tail = lambda room: np.exp(logs(np.arange(room + 1, 3999))).sum()  # noqa: E731
  assert most % 8 == 0 and tail(most) <= 1e-9 < tail(most - 8)


def test_a_larger_sample_is_cut_to_a_random_subset():
  rng = np.random.default_rng(0)
  members = private_steps.unit_members(task(10, 100))
  times = np.zeros(10)
  for _ in range(2000):
    rows, places = private_steps._step(members, 1.0, 4, 1, rng)
    assert len(set(rows)) == 4 and places.tolist() == [0, 1, 2, 3]
    times[rows] += 1
  assert abs(times / 2000 - 0.4).max() < 0.05


def test_notes_are_drawn_whole_up_to_their_bound():
  """Three notes of 4, 1 and 2 examples, of which 2 count at most."""
  part = task(7, 100)._replace(units=('x', 'y', 'x', 'x', 'z', 'x', 'z'))
  assert [one.tolist() for one in private_steps.unit_members(part)] == [
    [0, 2, 3, 5], [1], [4, 6]]
  schedule = drawn_plan(Units('note', 2), (site('a', part),), batch_size=3, rounds=4)
  seen = set()
  for step in schedule.plan[0][0]:
    assert step.units.tolist() == [0, 0, 1, 2, 2]  # q = 1
    assert step.members[2:].tolist() == [1, 4, 6]
    seen.add(tuple(step.members[:2]))
  assert len(seen) == 6  # every pair of the four
  batches, _ = schedules.round_arrays(schedule, 0)
  room = capacity(3)
  assert batches.tokens.shape[2:4] == (room, 2)
  assert schedule.layout.drawn(batches)[0].sum(-1).tolist() == [3] * 25
  tokens = batches.tokens[0, 0, :3]
  assert [set(one[one > 0].tolist()) for one in tokens][1:] == [{101}, {104, 106}]


def test_steps_of_short_examples_are_computed_in_narrower_rows():
  """60 examples of at most 14 tokens and one of 90: its steps alone are computed 96 wide, and each
  bucket holds what the whole does of the others, in notes of 3 examples too."""
  part = task(60, 100, prefix=5)
  long = part.train[0]._replace(tokens=np.full(90, 7, np.int32), prompt_length=80)
  part = part._replace(train=(*part.train, long))
  for units, names in ((EXAMPLES, ()), (Units('note', 3), tuple(str(i // 3) for i in range(61)))):
    schedule = drawn_plan(
      units, (site('a', part._replace(units=names)),), batch_size=4, rounds=3, shapes=3)
    bucket, = schedule.layout.shape_buckets
    batches, _ = schedules.round_arrays(schedule, 1)
    assert batches.tokens.shape[-1] == 96
    for place, step in enumerate(schedule.plan[1][0]):
      batch = type(batches)(*(leaf[0, place] for leaf in batches))
      small = bucket.cut(batch)
      assert small.tokens.shape[-2:] == (units.examples, 32)
      assert bucket.holds(batch) == (60 not in step.members)
      if 60 not in step.members:
        for name in ('segments', 'target_weight', 'tokens'):
          assert getattr(small, name).sum() == getattr(batch, name).sum()


def test_the_accountant_is_told_of_the_steps_that_were_taken():
  """Two sites and two tasks: q = 6 / n; of 10 planned steps a site that stops early took 4."""
  other = site('b', task(3, 300), task(12, 400, name='re'))
  schedule = drawn_plan(sites=(SITE, other), local_steps=10, rounds=2)
  room = capacity(6)
  assert schedule.draws(1, [1, 0], [10, 4]) == [
    Draws(0, 0, 6 / 40, room, 40, 4), Draws(1, 0, 1.0, room, 3, 4), Draws(1, 1, 0.5, room, 12, 6)]
  assert schedule.draws(1, [1, 0], [0, 4]) == schedule.draws(1, [0], [4])
  assert sum(one.steps for one in schedule.draws(0)) == 20
  # Pooled, the same units are drawn, each of its own site.
  pooled = drawn_plan(sites=(SITE, other), local_steps=10, rounds=2, pooled=True)
  assert pooled.draws(0) == schedule.draws(0)
  assert sizes((SITE, other)).tolist() == [40, 15]


def test_sentences_that_stand_for_notes_are_of_their_note():
  example = Example('note#120', 0, 'text', (), source='patient')
  assert unit_name('note', example) == 'note' and unit_name('patient', example) == 'patient'
  alone = example._replace(source='')
  assert unit_name('patient', alone) == 'note'


def test_all_rows_of_a_sentence_are_one_unit():
  """Of two sentences, one of which is asked three times; V holds the first row of each."""
  one, other = (Example('note', start, 'text', ()) for start in (0, 30))
  rows, names = rows_of_units(
    lambda found: [row for example in found for row in [example] * (3 - example.start // 15)],
    [one, other], partial(unit_name, 'example'))
  assert rows == [one] * 3 + [other] and names == ['note:0'] * 3 + ['note:30']
  assert first_of_each(np.array([2, 3, 0, 1]), names, 1).tolist() == [2, 3]
  part = task(4, 100)._replace(units=tuple(names))
  schedule = drawn_plan(Units('example', 8), (site('a', part),), batch_size=2, rounds=1)
  assert {tuple(step.members) for step in schedule.plan[0][0]} == {(0, 1, 2, 3)}  # q = 1
  assert schedule.draws(0)[0].units == 2
  # Rows of a unit are as many as any has.
  assert schedules.round_arrays(schedule, 0)[0].tokens.shape[2:4] == (capacity(2), 3)

"""Rounds as arrays: who takes which steps, and what the server validates on."""

from functools import partial

import numpy as np
import pytest

from fedmedjax.data import pack, step_order
from fedmedjax.data import schedule as schedules
from fedmedjax.data.site import SiteData, TaskData
from fedmedjax.data.tasks import ask
from fedmedjax.data.tokenize import TokenExample
from fedmedjax.types import Batch, InputError, SiteCorpus

CORPUS = SiteCorpus('any', ('problem',), (), (), {}, {'problem': ('severity',)})


def task(
    count: int, first_token: int, validation: int = 3, name: str = 'ner', prefix: int = 2
) -> TaskData:
  """Examples whose tokens say where they come from; targets are two thirds of them."""
  rng = np.random.default_rng(first_token)
  examples = [
    TokenExample(np.full(6 + rng.integers(0, 9), first_token + i, np.int32), 2)
    for i in range(count + validation)]
  return TaskData(
    ask(name, CORPUS), np.arange(1, prefix + 2, dtype=np.int32), tuple(examples[:count]),
    tuple(examples[count:]), (), ())


def site(name: str, *tasks: TaskData) -> SiteData:
  return SiteData(name, ('problem',), tasks, {})


SITES = (
  site('a', task(10, 100)), site('b', task(5, 200)), site('c', task(3, 300, validation=6)))


def sizes(sites, weight_by='examples', loss_on='completion') -> np.ndarray:
  return schedules.site_sizes(sites, weight_by, partial(pack.supervised, loss_on=loss_on))


def plan(sites=SITES, weight_by='examples', **changes) -> schedules.Schedule:
  loss_on = changes.pop('loss_on', 'completion')
  return schedules.make_schedule(sites, sizes(sites, weight_by, loss_on), **{
    'rounds': 3, 'local_steps': 0, 'local_epochs': 1, 'batch_size': 4, 'seed': 0, 'pooled': False,
    'loss_on': loss_on, 'shapes': 1, **changes})


def examples_of(schedule, number) -> list[int]:
  """The example ids that round `number` trains on, read off the arrays."""
  batches, mask = schedules.round_arrays(schedule, number)
  found = []
  for c, k in np.argwhere(mask):
    for row, segments in zip(batches.tokens[c, k], batches.segments[c, k], strict=True):
      found += [int(row[segments == s][0]) for s in range(1, segments.max() + 1)]
  return sorted(found)


def test_epochs_visit_every_example_and_padding_is_masked():
  schedule = plan(local_epochs=2)
  batches, mask = schedules.round_arrays(schedule, 0)
  assert mask.sum(axis=1).tolist() == [6, 4, 2]  # 2 * ceil(10, 5, 3 over 4)
  assert isinstance(batches, Batch) and batches.tokens.shape[:2] == (3, 6)
  assert not batches.target_weight[~mask].any()
  expected = sorted(2 * [*range(100, 110), *range(200, 205), *range(300, 303)])
  assert examples_of(schedule, 0) == expected
  assert schedules.round_work(schedule, 0)[0] == len(expected)


def test_a_site_with_one_example_trains_on_it():
  """Beside larger ones, in every step of a fixed number, and once an epoch."""
  alone = site('one', task(1, 400, validation=1))
  schedule = plan((SITES[0], alone), rounds=2, local_steps=3)
  assert [x for x in examples_of(schedule, 1) if x >= 400] == [400] * 3
  assert schedule.weights.tolist() == [10, 1]


def test_fixed_steps_go_on_where_the_last_round_stopped():
  """2 steps a round: site a's epoch of 3 steps ends in the middle of round 2."""
  schedule = plan(local_steps=2)
  seen = [
    x for number in range(3) for x in examples_of(schedule, number) if 100 <= x < 110]
  # 6 steps are exactly two epochs.
  assert sorted(seen) == sorted(2 * list(range(100, 110)))


@pytest.mark.parametrize('steps', [0, 2])
def test_pooled_takes_the_very_steps_of_the_federation(steps):
  apart, pooled = plan(local_steps=steps), plan(local_steps=steps, pooled=True)
  for number in range(3):
    assert examples_of(apart, number) == examples_of(pooled, number)
    batches, mask = schedules.round_arrays(pooled, number)
    assert mask.shape == (1, sum(len(one) for one in apart.plan[number])) and mask.all()
    # Every step keeps its own site's instruction.
    for k in range(mask.shape[1]):
      row = batches.tokens[0, k, 0]
      assert row[0] >= 100 and batches.prefix[0, k, 0] == 1
  assert pooled.weights.tolist() == [18.0]


def test_pooled_steps_are_shuffled_across_sites_and_anew_each_round():
  """Eight steps each of three sites: one site after the other would change sites twice, a random
  order of 24 changes 16 times on average, with a standard deviation of 2.3."""
  apart, pooled = plan(local_steps=8), plan(local_steps=8, pooled=True)
  orders = []
  for number in range(3):
    steps = [(step.site, tuple(step.members)) for step in pooled.plan[number][0]]
    own = [(step.site, tuple(step.members)) for one in apart.plan[number] for step in one]
    assert sorted(steps) == sorted(own)
    orders.append([site for site, _ in steps])
    assert sum(a != b for a, b in zip(orders[-1], orders[-1][1:], strict=False)) >= 9
  assert orders[0] != orders[1] != orders[2] != orders[0]


def test_sites_and_tasks_of_equal_size_have_example_orders_of_their_own():
  """Two sites with the same two tasks of 20 examples, in 5 steps of 4: one order for all sites, or
  for both tasks of a site, would make these plans equal index by index."""
  def members(one, task):
    return [step.members.tolist() for step in one if step.task == task]

  twins = [
    site(name, task(20, 100), task(20, 100, name='re')) for name in ('left', 'right')]
  left, right = plan(twins, rounds=1).plan[0]
  for one in (left, right):
    assert sorted(i for step in members(one, 0) for i in step) == list(range(20))
    assert members(one, 0) != members(one, 1)
  for kind in (0, 1):
    assert members(left, kind) != members(right, kind)
  # Nor do the sites alternate between their tasks in step.
  turns = [tasks_of(plan(twins), number) for number in range(3)]
  assert any(one != other for one, other in turns)


def test_weights_count_examples_or_supervised_tokens():
  assert plan().weights.tolist() == [10, 5, 3]
  tokens = [sum(len(e.tokens) - 2 for e in one.train) for one in SITES]
  assert plan(weight_by='tokens').weights.tolist() == tokens


def test_validation_is_grouped_by_site():
  """3, 3 and 6 examples in steps of at most 4: one, one and two steps."""
  batches, group, answers, group_site = schedules.validation_arrays(plan())
  assert group.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]
  assert answers.tolist() == [3, 3, 3, 3] and group_site.tolist() == [0, 1, 2]
  ids = {int(x) for x in np.unique(batches.tokens)} - {0}
  assert ids == {*range(110, 113), *range(205, 208), *range(303, 309)}


def test_the_servers_own_notes_have_no_site():
  """Five examples in two steps, of a longer instruction and longer than any of the sites'."""
  alone = [one._replace(tasks=tuple(part._replace(validation=()) for part in one.tasks))
           for one in SITES]
  long = task(0, 400, prefix=50, validation=5)
  long = long._replace(validation=(
    *long.validation[:4], TokenExample(np.full(60, 404, np.int32), 2)))
  assert schedules.validation_arrays(plan(alone)) is None
  batches, group, answers, group_site = schedules.validation_arrays(
    plan(alone, server=(site('v', long),)))
  assert group.tolist() == [[1], [1]] and sorted(answers) == [2, 3] and group_site.tolist() == [-1]
  assert {int(x) for x in np.unique(batches.tokens)} - {0} == {*range(400, 405)}
  assert (batches.tokens == 404).sum() == 60 and (batches.prefix[0] >= 0).sum() == 50


BOTH = site('d', task(12, 100), task(30, 200, name='re', prefix=40))


def tasks_of(schedule, number) -> list[list[int]]:
  return [[step.task for step in one] for one in schedule.plan[number]]


def test_steps_of_two_tasks_share_a_shape_and_keep_to_their_share():
  """A quarter of 6 steps is 1.5: two, one, two, one of four rounds, in an order of its own. Site b
  has one task only and takes all steps of it, the ones it takes without the others."""
  sites, settings = (BOTH, SITES[1]), dict(rounds=4, local_steps=6)
  schedule = plan(sites, shares={'ner': 0.75, 're': 0.25}, **settings)
  mixed = [tasks_of(schedule, number)[0] for number in range(4)]
  assert [sum(one) for one in mixed] == [1, 2, 1, 2] and len({tuple(one) for one in mixed}) > 1
  assert [tasks_of(schedule, number)[1] for number in range(4)] == [[0] * 6] * 4
  alone = plan(sites[1:], **settings)
  for number in range(4):
    batches, mask = schedules.round_arrays(schedule, number)
    assert mask.all() and batches.prefix.shape[2] == 48
    for step, arrays in zip(schedule.plan[number][0], batches.prefix[0], strict=True):
      # A step has the instruction of its task, padded to the longer one, and only its examples.
      assert (arrays >= 0).sum() == (2, 40)[step.task]
    for step, tokens in zip(schedule.plan[number][0], batches.tokens[0], strict=True):
      assert set(np.unique(tokens)) - {0} <= set(((100 + np.arange(12)), (200 + np.arange(30)))[
        step.task])
    # Whose index is the same has the same steps, whatever else the federation holds.
    assert [s.members.tolist() for s in plan(sites[::-1], **settings).plan[number][0]] == [
      s.members.tolist() for s in alone.plan[number][0]]
  # The tasks' own steps go on over rounds: six of 're' are most of an epoch of eight, none twice.
  seen = [i for steps in schedule.plan for step in steps[0] if step.task for i in step.members]
  assert len(seen) == len(set(seen))


def test_epochs_of_two_tasks_visit_every_example_of_both():
  schedule = plan((BOTH,), rounds=2)
  assert schedule.weights.tolist() == [42.0]
  for number in range(2):
    assert sum(tasks_of(schedule, number)[0]) == 8 and len(tasks_of(schedule, number)[0]) == 11
    assert examples_of(schedule, number) == [*range(100, 112), *range(200, 230)]
  short, long = plan((BOTH,), rounds=1), plan((BOTH,), rounds=3)
  assert examples_of(short, 0) == examples_of(long, 0)
  assert tasks_of(plan((BOTH,), seed=1), 0) != tasks_of(short, 0) == tasks_of(long, 0)


def test_validation_is_grouped_by_site_and_task():
  """One step each: the plain mean (docs/methods.md) over (site, task) groups."""
  _, group, answers, group_site = schedules.validation_arrays(plan((BOTH, SITES[1])))
  assert group.tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
  assert answers.tolist() == [3, 3, 3] and group_site.tolist() == [1, 0, 0]


def test_the_streams_of_a_seed_stay_what_they_are():
  """A run that is resumed has to find the orders of the run that was interrupted: of tasks, of
  pooled steps, and of V, whose steps are cut as those of a first site and task."""
  schedule = plan((SITES[1], BOTH), seed=3, rounds=2)
  for number in range(2):
    rng = np.random.default_rng((3, number, 1, 1))
    assert tasks_of(schedule, number)[1] == rng.permutation([0] * 3 + [1] * 8).tolist()
  apart, pooled = plan(seed=3, rounds=2), plan(seed=3, rounds=2, pooled=True)
  for number in range(2):
    every = [step for own in apart.plan[number] for step in own]
    places = np.random.default_rng((3, number)).permutation(len(every))
    for ours, place in zip(pooled.plan[number][0], places, strict=True):
      assert ours.members.tolist() == every[place].members.tolist()
  one = task(3, 300, validation=9)
  steps = step_order.site_steps(
    np.asarray([len(example.tokens) for example in one.validation]), 4, schedules.SPLIT_SEED,
    site=0, first=0, count=3, task=0)
  batches, *_ = schedules.validation_arrays(plan((site('c', one),)))
  assert [set(np.unique(tokens)) - {0} for tokens in batches.tokens] == [
    {303 + i for i in members} for members in steps]


def test_rounds_do_not_depend_on_how_many_are_planned():
  short, long = plan(rounds=1), plan(rounds=3)
  assert examples_of(short, 0) == examples_of(long, 0)


def test_a_cohort_takes_its_own_steps_and_no_others():
  """Sites c and a of all three, two steps of a's six; b is planned in round 1 only."""
  schedule = plan(local_epochs=2, cohorts=[(0, 2), (1,), (0, 1, 2)])
  assert [len(one) for one in schedule.plan[0]] == [6, 0, 2] and schedule.most_steps == 6
  batches, mask = schedules.round_arrays(schedule, 0, (2, 0), (2, 2))
  assert mask.shape == (2, 6) and mask.sum(axis=1).tolist() == [2, 2]
  everyone, _ = schedules.round_arrays(plan(local_epochs=2), 0)
  for ours, theirs in zip(batches, everyone, strict=True):
    np.testing.assert_array_equal(ours[0, :2], theirs[2, :2])
    np.testing.assert_array_equal(ours[1, :2], theirs[0, :2])
  assert not batches.target_weight[~mask].any()
  examples = sum(len(schedule.plan[0][site][k].members) for site in (0, 2) for k in (0, 1))
  assert schedules.round_work(schedule, 0, (2, 0), (2, 2))[0] == examples
  with pytest.raises(ValueError, match='argument'):
    schedules.round_arrays(schedule, 0, (2, 0), (2,))
  # Padding of a later cohort: a place with no step.
  assert schedules.round_arrays(schedule, 1, (1, 0), (4, 0))[1].sum(axis=1).tolist() == [4, 0]


def test_pooled_takes_the_steps_of_the_cohorts():
  cohorts = [(0, 2), (1,), (0, 1, 2)]
  apart, pooled = plan(cohorts=cohorts), plan(cohorts=cohorts, pooled=True)
  for number in range(3):
    assert examples_of(apart, number) == examples_of(pooled, number)
  with pytest.raises(InputError, match='no site is drawn in 2 rounds'):
    plan(rounds=2, cohorts=[(), ()])


@pytest.mark.parametrize('steps', [dict(local_steps=1), dict(local_steps=2), dict(local_epochs=1)])
def test_a_site_goes_on_in_its_epoch_where_it_stopped(steps):
  """Site a of 3 steps an epoch in every other round: what it sees is what it would have seen in
  rounds one after the other, and three steps are an epoch, none of it twice."""
  rounds = 6
  always = plan(rounds=rounds, **steps)
  partly = plan(
    rounds=rounds, cohorts=[(0, 1) if number % 2 else (1, 2) for number in range(rounds)], **steps)
  seen = [step.members for number in (1, 3, 5) for step in partly.plan[number][0]]
  expected = [step.members for number in (0, 1, 2) for step in always.plan[number][0]]
  assert len(seen) == len(expected) >= 3
  for ours, theirs in zip(seen, expected, strict=True):
    np.testing.assert_array_equal(ours, theirs)
  assert sorted(np.concatenate(seen[:3])) == list(range(10))


@pytest.mark.parametrize('total, cohorts', [
  (7, None), (3, None), (8, [(0, 2), (1,), (0, 1, 2)]), (1, [(2,), (0,), (1,)])])
def test_all_sites_of_a_round_take_the_given_steps_together(total, cohorts):
  """Whole steps, dealt out evenly, and those left over in turns: of 7 a round among 3 sites, each
  takes 7 in three rounds."""
  schedule = plan(rounds=3, round_steps=total, cohorts=cohorts)
  counts = np.array([[len(own) for own in steps] for steps in schedule.plan])
  assert counts.sum(axis=1).tolist() == [total] * 3
  for number, row in enumerate(counts):
    took = row[list(cohorts[number])] if cohorts else row
    assert took.max() - took.min() <= 1
  if cohorts is None:
    assert counts.sum(axis=0).tolist() == [total] * 3
  # As one participant.
  pooled = plan(rounds=3, round_steps=total, cohorts=cohorts, pooled=True)
  assert [len(steps[0]) for steps in pooled.plan] == [total] * 3


def test_steps_left_over_are_taken_in_turns():
  """Three sites: of 4 steps the fourth goes to the first, the second, the third; of 5 two more to
  the first two, the third and the first, the second and the third."""
  for total, more in ((4, [{0}, {1}, {2}]), (5, [{0, 1}, {2, 0}, {1, 2}])):
    schedule = plan(rounds=3, round_steps=total)
    for steps, few in zip(schedule.plan, more, strict=True):
      assert [len(own) for own in steps] == [1 + (site in few) for site in range(3)]


def test_steps_taken_are_those_of_the_sites_that_take_some():
  """Of 10, 5 and 3 examples in fours: 3, 2 and 1 steps; a round without sites is left out."""
  taken = plan(cohorts=[(0, 2), (), (1,)]).steps_taken
  assert [steps.tolist() for steps in taken] == [[3, 1], [2]]


@pytest.mark.parametrize('prefix', [16, 17])
def test_shapes_count_the_instruction_without_its_last_token(prefix, monkeypatch):
  """Of P + 1 tokens the last opens every example; and of so many shapes one is the whole."""
  asked = {}

  def smaller(examples, prefixes, whole, loss_on, most, groups):
    asked.update(prefixes=set(prefixes), whole=whole, most=most)
    return (whole,)

  monkeypatch.setattr(pack, 'smaller_shapes', smaller)
  schedule = plan((site('a', task(10, 100, prefix=prefix)),), shapes=3)
  assert asked['prefixes'] == {prefix} and asked['most'] == 2
  assert asked['whole'].prefix == {16: 16, 17: 32}[prefix]
  chosen = []
  monkeypatch.setattr(
    pack, 'first_shape', lambda step, length, *rest: chosen.append(length) or asked['whole'])
  schedules.round_arrays(schedule, 0)
  assert chosen and set(chosen) == {prefix}


def test_work_and_validation_by_hand():
  """8 examples of validation are 2 steps of 4; a round's tokens are those of its examples and of
  3 instructions without their last token."""
  part = task(10, 100, validation=8)
  schedule = plan((site('a', part),), rounds=1)
  batches, groups, *_ = schedules.validation_arrays(schedule)
  assert len(groups) == 2 and [int(np.sum(step > 0)) for step in batches.segments] == [
    sum(len(part.validation[i].tokens) for i in members) for members in step_order.site_steps(
      np.asarray([len(example.tokens) for example in part.validation]), 4, schedules.SPLIT_SEED,
      0, 0, 2)]
  assert schedules.round_work(schedule, 0) == (
    10, sum(len(example.tokens) for example in part.train) + 3 * 2)

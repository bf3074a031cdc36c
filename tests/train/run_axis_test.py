"""Runs along one axis are the runs alone, round by round; what is padded changes nothing."""

import jax
import numpy as np
import pytest
from rich.console import Console

from fedmedjax import tree
from fedmedjax.experiment.build import load_data, prepare
from fedmedjax.experiment.command_line import choose_preset
from fedmedjax.experiment.config import leaves, validate
from fedmedjax.experiment.shipped.ablation import get_config
from fedmedjax.experiment.traced import NUMBERS, numbers_of, program_key
from fedmedjax.fed.types import LocalData, Validation
from fedmedjax.runtime.progress import Reporter
from fedmedjax.train import loop, run_axis
from fedmedjax.types import LabelBatch

QUIET = Reporter(Console(quiet=True))


def configured(preset, seed, **changes):
  """A word tagger of two sites of one cohort each, as small as it can be."""
  config = get_config('fed_medlora')
  choose_preset(config, preset)
  config.tagger.update(width=8, buckets=64)
  config.lora.rank, config.seed = 4, seed
  config.data.update(synthetic_notes=6, max_train_sentences=12, validation_examples=2)
  config.data.partition.update(kind='', sites=2)
  config.fed.update(rounds=2, local_steps=0, local_epochs=1, batch_size=4, faulty=0)
  config.update_from_flattened_dict(changes)
  validate(config)
  return config


def studies_of(configs):
  return [prepare(config, load_data(config, QUIET)) for config in configs]


def alone(study):
  """The server's adapter after each round of a run."""
  state, found = study.algorithm.init(study.trainable.adapter), []
  for number in range(study.options.rounds):
    state, _ = study.algorithm.round(*loop._inputs(
      study, state, number, *loop.packed_round(study, number)))
    found.append(jax.tree.map(np.array, state.adapter))
  return found


def together(configs, studies, at_once):
  """The same for runs along an axis: [rounds][run]."""
  values = [leaves(config.to_dict()) for config in configs]
  keys = numbers_of(values)
  shapes = run_axis.common([run_axis.shapes_of(study) for study in studies])
  program = run_axis.program(studies[0], studies[0].executions[0], keys, at_once)
  given = run_axis.numbers_of_all(values, keys)
  states, found = run_axis.first_states(program, studies, given), []
  validation = run_axis.stacked([
    run_axis.padded_validation(study.validation, shapes) for study in studies])
  for number in range(studies[0].options.rounds):
    turns, data = zip(*(loop.packed_round(study, number) for study in studies), strict=True)
    states, _ = program.rounds(
      states, studies[0].trainable.base, given,
      run_axis.stacked([run_axis.padded_data(one, shapes) for one in data]),
      np.stack([turn.cohort.sites for turn in turns]), validation,
      run_axis.round_keys([study.options.seed for study in studies], number))
    found.append([
      jax.tree.map(np.array, run_axis.taken(states.adapter, run)) for run in range(len(studies))])
  return found, program, states, validation


def apart(one, other):
  return float(tree.norm(jax.tree.map(np.subtract, one, other)) / tree.norm(one))


# By preset: what each run changes. All of `traced.NUMBERS` are here but rates of other learners.
CHANGES = {
  'fed_medlora_plus': (
    {}, {'optim.learning_rate': 3e-3, 'optim.clip_norm': 0.1, 'fed.temperature': 3.0,
         'fed.floor': 0.3, 'data.max_train_sentences': 8, 'data.validation_examples': 5}),
  'fed_medlora_plus_code': (
    {'fed.ema': 0.2, 'fed.loss_power': 1.0, 'optim.weight_decay': 0.01},
    {'fed.ema': 0.7, 'fed.loss_power': 3.0, 'optim.weight_decay': 0.3, 'fed.size_power': 0.5}),
  # The first state begins with tau^2.
  'fedadam': ({'fed.server_tau': 1e-3},
              {'fed.server_tau': 1e-1, 'fed.server_learning_rate': 0.03}),
  'scaffold': ({}, {'optim.sgd_learning_rate': 0.03}),
  'trimmed_mean': ({'fed.trim': 0.1}, {'fed.trim': 0.4}),
  'multi_krum': ({'fed.faulty': 0, 'fed.kept': 1}, {'fed.faulty': 1, 'fed.kept': 3}),
  'clipped_mean': ({}, {'fed.norm_limit': 0.2}),
  'lora_fair': ({}, {'fed.fair_penalty': 10.0}),
  'fedbuff': (
    {'fed.buffer': 1, 'fed.rounds': 4},
    {'fed.buffer': 1, 'fed.rounds': 4, 'optim.learning_rate': 3e-3,
     'data.max_train_sentences': 8}),
  'fedprox': ({'fed.ranks': (2, 4)}, {'fed.ranks': (4, 1), 'fed.rule_strength': 10.0})}
MORE_SITES = {'data.partition.kind': 'iid', 'data.partition.unit': 'sentence',
              'data.partition.sites': 5}


@pytest.mark.parametrize('preset, at_once', [
  ('fed_medlora_plus', 1), ('fedadam', 1),
  pytest.param('fed_medlora_plus', 0, marks=pytest.mark.slow),
  *(pytest.param(preset, 1, marks=pytest.mark.slow) for preset in CHANGES
    if preset not in ('fed_medlora_plus', 'fedadam'))])
def test_each_run_is_that_run_alone(preset, at_once):
  """Unlike rates, temperatures, clipping, ranks, numbers of steps and of judged examples."""
  more = MORE_SITES if preset in ('trimmed_mean', 'multi_krum') else {}
  configs = [configured(preset, seed, **more | changes)
             for seed, changes in enumerate(CHANGES[preset])]
  studies = studies_of(configs)
  assert len({program_key(leaves(config.to_dict()), {}) for config in configs}) == 1
  assert len({run_axis.kin(study) for study in studies}) == 1
  if any('data.max_train_sentences' in changes for changes in CHANGES[preset]):
    assert len({run_axis.shapes_of(study).key() for study in studies}) > 1
  found, program, states, validation = together(configs, studies, at_once)
  for run, study in enumerate(studies):
    expected = alone(study)
    for number, adapter in enumerate(expected):
      assert apart(adapter, found[number][run]) < 1e-6
    # The numbers are heard: the other run's result is another.
    assert apart(expected[-1], found[-1][run - 1]) > 1e-3
  if preset == 'fed_medlora_plus':
    from fedmedjax.fed.local import mean_loss
    judged = program.judged(states, studies[0].trainable.base, validation)
    loss = mean_loss(studies[1].step_loss('none'), found[-1][1], studies[1].trainable.base,
                     studies[1].validation)
    np.testing.assert_allclose(judged[1], loss, rtol=1e-5)


def test_every_number_is_compared_with_a_run_alone():
  changed = {key for runs in CHANGES.values() for changes in runs for key in changes}
  assert set(NUMBERS) - changed == {'bert.learning_rate'}


def test_runs_whose_states_have_other_shapes_are_not_of_kin():
  """Of buffered rounds, as many adapters are in flight as sites compute at a time."""
  one, other = studies_of([
    configured('fedbuff', 0, **{'fed.buffer': 1, 'fed.cohort_size': size}) for size in (1, 2)])
  assert run_axis.kin(one) != run_axis.kin(other)


def test_what_is_padded_is_told_from_what_is_there():
  """V of one step beside one of three: two more, whose loss is finite and which have no group.
  Examples of one step of two words become two steps of three words that nobody takes."""

  def arrays(lead, words):
    ones = np.ones((*lead, 1, words), np.float32)
    return LabelBatch(ones.astype(np.int32), ones > 0, ones.astype(np.int32), ones,
                      np.ones((*lead, 3), bool))

  blank = jax.tree.map(np.zeros_like, arrays((), 3))
  shapes = run_axis.Shapes(2, 3, blank)
  short = run_axis.padded_validation(Validation(
    arrays((1,), 2), np.ones((1, 1), np.float32), np.ones(1, np.float32),
    np.zeros(1, np.int32)), shapes)
  assert short.batches.weight.tolist() == [[[1, 1, 0]]] * 3
  assert short.group.tolist() == [[1], [0], [0]] and short.answers.tolist() == [1, 0, 0]
  assert short.batches.allowed.all() and run_axis.padded_validation(None, shapes) is None
  data = run_axis.padded_data(
    LocalData(arrays((1, 1), 2), np.ones((1, 1), bool), np.ones(1), delay='as it was'), shapes)
  assert data.step_mask.tolist() == [[True, False]] and data.delay == 'as it was'
  assert data.batches.weight.tolist() == [[[[1, 1, 0]], [[0, 0, 0]]]]
  small = run_axis.Shapes(2, 1, jax.tree.map(np.zeros_like, arrays((), 2)))
  assert run_axis.holds(shapes, small) and not run_axis.holds(small, shapes)
  assert run_axis.common([small, shapes]).key() == shapes.key()
  assert run_axis.wasteful(small, shapes) and not run_axis.wasteful(shapes, shapes)

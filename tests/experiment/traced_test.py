"""Which runs share a program: those that differ in numbers, and not those that differ in parts."""

import pytest

from fedmedjax.experiment.command_line import choose_preset
from fedmedjax.experiment.config import leaves
from fedmedjax.experiment.shipped.ablation import get_config
from fedmedjax.experiment.traced import NUMBERS, numbers_of, program_key


def values(preset='fed_medlora', **changes):
  config = get_config('fed_medlora')
  choose_preset(config, preset)
  return leaves(config.to_dict()) | changes


def key(*arguments, **changes):
  return program_key(values(*arguments, **changes), {})


@pytest.mark.parametrize('changes', [
  {'optim.learning_rate': 2.0}, {'seed': 1}, {'data.partition.strength': 9.0},
  {'fed.temperature': 2.0}, {'fed.size_power': 0.0}, {'fed.local_steps': 3}])
def test_numbers_and_data_share_a_program(changes):
  assert key(**changes) == key()


@pytest.mark.parametrize('changes', [
  {'fed.rule': 'fedprox'}, {'optim.b2': 0.9}, {'lora.rank': 2}, {'fed.loss_power': 1.0},
  {'fed.ranks': (2, 8)}, {'optim.weight_decay': 0.1}, {'fed.outbound': 'int8'}])
def test_parts_and_what_zero_switches_off_do_not(changes):
  assert key(**changes) != key()


def test_methods_that_differ_in_numbers_are_one_program():
  assert key('uniform') == key() and key('krum') == key('multi_krum')
  assert key('fed_medlora_plus') == key('fed_medlora_plus_code')
  assert len({key(name) for name in ('fed_medlora_plus', 'fed_medlora_peer', 'median')}) == 3


def test_rates_are_always_numbers_and_others_where_they_differ():
  same = [values(), values(seed=3)]
  assert numbers_of(same) == (
    'optim.learning_rate', 'optim.sgd_learning_rate', 'bert.learning_rate')
  assert 'fed.temperature' in numbers_of([*same, values(**{'fed.temperature': 2.0})])
  assert set(NUMBERS) <= values().keys()

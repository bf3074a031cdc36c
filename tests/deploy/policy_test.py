"""What a site lets leave, and what the server says cannot be done then."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedmedjax.deploy import telling
from fedmedjax.deploy.memory import Unanswerable
from fedmedjax.deploy.policy import Policy, leaving, listed, read_policy
from fedmedjax.experiment.config import leaves
from fedmedjax.experiment.defaults import apply_preset, get_config
from fedmedjax.experiment.undeployed import check_deployable, objection
from fedmedjax.types import InputError


def test_a_policy_is_read(tmp_path):
  path = tmp_path / 'policy.toml'
  assert read_policy(None) == Policy()
  path.write_text('number_of_examples = false\nsmallest_count = 11\nlargest_update_norm = 2\n')
  policy = read_policy(path)
  assert Policy(scores=False).withheld == ('scores',)
  assert policy == Policy(
    number_of_examples=False, smallest_count=11, largest_update_norm=2)
  assert policy.withheld == ('number_of_examples',)


@pytest.mark.parametrize('text, words', [
  ('validation_loss = false', "unknown key 'validation_loss'; did you mean 'validation_losses'?"),
  ('training_losses = 0', 'true or false is allowed'),
  ('smallest_count = -1', 'a whole number >= 0'), ('smallest_count = true', 'a whole number'),
  ('largest_update_norm = nan', 'a number >= 0'), ('[x]\ny = 1', "unknown key 'x'"),
  ('losses', 'cannot be read'), ('a = 1\na = 2', 'cannot be read')])
def test_mistakes_in_a_policy_are_one_line(tmp_path, text, words):
  path = tmp_path / 'policy.toml'
  path.write_text(text)
  with pytest.raises(InputError) as error:
    read_policy(path)
  assert words in str(error.value) and str(path) in str(error.value)
  assert len(str(error.value).splitlines()) == 1
  with pytest.raises(InputError, match='No such file'):
    read_policy(tmp_path / 'none.toml')


def test_what_can_leave_is_listed():
  """An update of 2 x 3 float32, and one line for each that is allowed or not."""
  rows = leaving(
    Policy(validation_losses=False, largest_update_norm=2.0), {'q/a': ((2, 3), 24)}, True, ('ner',))
  text = listed(rows)
  assert 'update of q/a; every round in which it is trained; of norm 2 at most, 2x3, 24 bytes' in (
    text)
  assert 'control variate' in text
  assert [row.what for row in rows if not row.allowed] == ['mean losses on validation notes (ner)']
  assert text.count('STAYS') == 1


def test_losses_of_few_examples_stay(monkeypatch):
  """Two steps of 4 examples: their mean is of 8, the last loss of 4. A site of 3 examples that come
  again and again tells neither."""
  monkeypatch.setattr(
    telling, 'round_work', lambda schedule, number, cohort, steps: (4 * steps[0], 50))
  learnt = SimpleNamespace(losses=np.float32([1, 3, np.nan]), start_loss=None, local_norm=2.0)

  def numbers(smallest, size, **more):
    study = SimpleNamespace(index=0, size=float(size), round_examples=8)
    policy = Policy(smallest_count=smallest)
    told = telling.told_of_round(
      policy, study, None, 0, 2, SimpleNamespace(**{**learnt.__dict__, **more}))
    assert told.arrays.keys() == {f'header/{name}:values' for name in told.numbers}
    return {key: told.numbers[key] for key in ('train_loss', 'last_loss') if key in told.numbers}, (
      telling.withheld(policy, study))

  assert numbers(4, 30) == ({'train_loss': 2.0, 'last_loss': 3.0}, ())
  assert numbers(5, 30) == ({'train_loss': 2.0}, ())
  assert numbers(9, 30) == ({}, ('training_losses',))
  assert numbers(4, 3) == ({}, ('number_of_examples', 'training_losses'))
  with pytest.raises(Unanswerable, match='config.fed.aggregator asks for its training loss'):
    numbers(9, 30, start_loss=1.0)


def values(preset: str, **more) -> dict:
  config = get_config()
  apply_preset(config, preset)
  return leaves(config.to_dict()) | {f'fed.{key}': value for key, value in more.items()}


EXAMPLES, VALIDATION = ('number_of_examples',), ('validation_losses',)


@pytest.mark.parametrize('preset, more, withheld, norm, privacy, words', [
  ('fed_medlora', {}, (), 0, False, None), ('fed_medlora', {}, VALIDATION, 0, False, None),
  ('fed_medlora', {}, EXAMPLES, 0, False, 'config.fed.size_power=1.0 weighs sites'),
  ('uniform', {'local_steps': 3}, EXAMPLES, 0, False, None),
  ('uniform', {'local_steps': 0}, EXAMPLES, 0, False, 'config.fed.local_steps=0 counts epochs'),
  ('uniform', {'local_steps': 0, 'round_steps': 5}, EXAMPLES, 0, False, None),
  ('uniform', {'sampler': 'size', 'local_steps': 3}, EXAMPLES, 0, False, 'config.fed.sampler'),
  ('fed_medlora_peer', {}, VALIDATION, 0, False, "config.fed.signal='peer' asks for losses"),
  ('hetlora', {}, VALIDATION, 0, False, None),
  ('fed_medlora', {}, ('training_losses', 'update_norm'), 0, False, None),
  ('afl', {}, ('training_losses',), 0, False, "config.fed.aggregator='agnostic' asks for the tr"),
  ('fed_medlora', {}, (), 1.5, False, 'config.fed.clip_update=0.0 allows longer updates'),
  ('fed_medlora', {'clip_update': 1.5}, (), 1.5, False, None),
  ('fed_medlora', {'clip_update': 1.6}, (), 1.5, False, 'largest_update_norm=1.5'),
  ('scaffold', {'clip_update': 1.5}, (), 1.5, False, "config.fed.rule='scaffold' sends control"),
  ('fed_medlora', {}, (), 0, True, 'asks for differential privacy')])
def test_what_a_policy_makes_impossible(preset, more, withheld, norm, privacy, words):
  found = objection(values(preset, **more), 'icu', withheld, norm, privacy)
  assert (found is None) == (words is None)
  assert words is None or words in found and "site 'icu'" in found and '\n' not in found


@pytest.mark.parametrize('preset, more, words', [
  ('zero_shot', {}, 'nothing is trained'), ('centralised', {}, 'pools the notes'),
  ('single_site', {}, 'share nothing'), ('fed_bert', {}, 'only adapters'),
  ('fed_medlora', {'fed.secure_aggregation': True}, 'simulated only'),
  ('fed_medlora', {'data.partition.kind': 'iid'}, 'deals notes out'),
  ('fed_medlora', {'fed.contribution': 'shapley'}, 'judged in simulations only'),
  ('ravan', {}, 'adapters with heads are simulated only'),
  ('fed_medlora_plus', {'data.server_validation': 'a'}, 'the server holds none'),
  ('flora', {'fed.signal': 'loo', 'fed.loss_power': 1.0}, 'too large to be sent')])
def test_what_can_only_be_simulated(preset, more, words):
  with pytest.raises(InputError, match=words) as error:
    check_deployable(values(preset) | more, {})
  assert str(error.value).startswith('config.')


@pytest.mark.parametrize('preset', [
  'fed_medlora', 'fed_medlora_plus', 'fed_medlora_loo', 'flora', 'fedex_lora', 'krum', 'feddyn',
  'scaffold', 'fedsa_lora', 'rolora', 'fedyogi', 'hetlora', 'fednova', 'afl', 'fedrot_lora',
  'fedsvd'])
def test_what_can_be_deployed(preset):
  check_deployable(values(preset), {})

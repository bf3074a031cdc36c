"""Presets and overrides: file, then row, then command line."""

from pathlib import Path

import pytest

from fedmedjax.compare.rows import Study, leaves_adapter, regime_config
from fedmedjax.compare.scenarios import parts
from fedmedjax.experiment.command_line import parse
from fedmedjax.experiment.config import validate
from fedmedjax.experiment.config_file import shipped_names
from fedmedjax.experiment.defaults import METHOD_DEFAULTS, PRESETS, apply_preset
from fedmedjax.experiment.shipped.ablation import get_config as get_ablation
from fedmedjax.types import InputError

ROOT = Path(__file__).parents[2]


def config(*argv):
  return parse(['fedmedjax', *argv], lambda values: None)[0]


def test_a_row_is_applied_by_colon_or_by_key():
  by_colon = config('--config=configs/quickstart.py:fed_medlora_plus_code')
  by_key = config('--config=configs/quickstart.py', '--config.fed.preset=fed_medlora_plus_code')
  assert by_colon.to_dict() == by_key.to_dict()
  assert (by_key.fed.size_power, by_key.fed.loss_power, by_key.fed.loss_on) == (0.0, 1.0, 'all')


@pytest.mark.parametrize('name', shipped_names())
def test_shipped_configurations_are_those_of_the_folder_configs(name, tmp_path, monkeypatch):
  """By name they are found from any folder; the files are thin."""
  by_file = config(f'--config=configs/{name}.py').to_dict()
  by_file_and_row = config(f'--config=configs/{name}.py:uniform').to_dict()
  monkeypatch.chdir(tmp_path)
  assert config(f'--config=fedmedjax:{name}').to_dict() == by_file
  assert config('-config', f'fedmedjax:{name}:uniform').to_dict() == by_file_and_row != by_file


def test_the_last_config_counts_and_may_stand_anywhere():
  chosen = config(
    '--config.fed.rounds=9', '--config=configs/real_ner.py', '--config=fedmedjax:quickstart')
  shipped = config('--config=fedmedjax:quickstart')
  assert (chosen.fed.rounds, chosen.fed.local_steps) == (9, shipped.fed.local_steps)
  assert shipped.fed.local_steps != config('--config=configs/real_ner.py').fed.local_steps


def test_flags_may_be_in_a_file(tmp_path):
  for mark in ('', '\ufeff', '\ufeff# of Tuesday\n'):
    (tmp_path / 'flags').write_text(
      mark + '--config=fedmedjax:quickstart\n--config.fed.rounds=9\n', encoding='utf-8')
    assert config(f'--flagfile={tmp_path / "flags"}').fed.rounds == 9


def test_folders_are_texts_or_paths(tmp_path):
  chosen = config('--config=fedmedjax:quickstart')
  for path in (tmp_path, str(tmp_path)):
    chosen.data.folders = (dict(name='a', path=path, format='brat', mapping=Path('m.toml')),)
    validate(chosen)
  chosen.data.folders = (dict(name='a', path=3, format='brat', mapping='schema'),)
  with pytest.raises(InputError, match=r'config.data.folders\[0\].path=3'):
    validate(chosen)


def test_the_command_line_goes_before_the_row():
  chosen = config(
    '--config=configs/quickstart.py', '--config.fed.preset=uniform', '--config.fed.size_power=0.5',
    '--config.fed.rounds=7')
  assert (chosen.fed.preset, chosen.fed.size_power, chosen.fed.rounds) == ('uniform', 0.5, 7)


@pytest.mark.parametrize('preset', PRESETS)
def test_every_row_changes_only_keys_of_methods(preset):
  assert set(PRESETS[preset]) <= {*METHOD_DEFAULTS, 'learner'}
  chosen = config(f'--config=configs/real_ner.py:{preset}')
  for key, value in (METHOD_DEFAULTS | PRESETS[preset]).items():
    assert chosen.fed[key] == value
  # Rows leave the budget alone: regimes are compared at equal steps.
  assert (chosen.fed.rounds, chosen.fed.local_steps, chosen.fed.batch_size) == (4, 20, 8)


def test_what_is_trained_is_the_configurations():
  """Rows but fed_bert leave the learner; leaving fed_bert, it is a language model again."""
  chosen = config('--config=configs/ablation.py')
  for preset, learner in (
      ('scaffold', 'tagger'), ('own', 'tagger'), ('fed_bert', 'bert'), ('fed_medlora', 'lora')):
    apply_preset(chosen, {'name': 'own', 'floor': 0.1} if preset == 'own' else preset)
    assert chosen.fed.learner == learner
  assert config('--config=configs/ablation.py:centralised').fed.learner == 'tagger'
  assert config('--config=configs/clinical_bert.py').fed.learner == 'bert'
  assert config(
    '--config=configs/quickstart.py:uniform', '--config.fed.learner=tagger').fed.learner == 'tagger'
  # A comparison of taggers may have a BERT in it.
  start = config('--config=configs/ablation.py')
  assert regime_config(start, 'fed_medlora', {}).fed.learner == 'tagger'
  assert regime_config(start, 'fed_bert', {'fed.learner': 'tagger'}).fed.learner == 'bert'
  assert regime_config(
    config('--config=configs/clinical_bert.py'), 'fed_medlora', {}).fed.learner == 'lora'
  assert not leaves_adapter(start, 'fed_medlora')


@pytest.mark.parametrize('key, value, said', [
  ('data.tasks', ('re',), "use ('ner',)"), ('lora.start', 'a', "use ''"),
  ('fed.train', False, 'use True'), ('mesh.tensor', 2, 'spread only'),
  ('tagger.width', 0, 'an integer'), ('tagger.max_length', 0, 'an integer')])
def test_what_a_tagger_cannot_do(key, value, said):
  chosen = get_ablation()
  validate(chosen)
  chosen.fed.loss_on = 'all'  # there is no prompt: the same
  validate(chosen)
  chosen.update_from_flattened_dict({key: value})
  with pytest.raises(InputError) as error:
    validate(chosen)
  assert said in str(error.value) and f'config.{key}=' in str(error.value)


def test_a_regime_forgets_the_row_before_it():
  """From the code's variant to single-site: loss_on and loss_power go back to their defaults."""
  start = config('--config=configs/quickstart.py:fed_medlora_plus_code')
  chosen = regime_config(start, 'single_site', {})
  assert (chosen.fed.sharing, chosen.fed.loss_on, chosen.fed.loss_power) == (
    'nothing', 'completion', 0.0)
  assert start.fed.loss_on == 'all'


def test_a_regime_keeps_the_command_line_but_for_what_makes_it_itself():
  overrides = {'fed.temperature': 0.1, 'fed.loss_power': 3.0}
  start = config('--config=configs/quickstart.py')
  plus = regime_config(start, 'fed_medlora_plus', overrides)
  assert (plus.fed.temperature, plus.fed.loss_power) == (0.1, 1.0)


def test_parts_of_ones_own_are_regimes_beside_the_presets(tmp_path):
  """An own aggregator by its file, and the row of one's own that the configuration has chosen."""
  start = config('--config=configs/quickstart.py')
  apply_preset(start, {'name': 'mine', 'aggregator': 'median', 'size_power': 0.5})
  own = f'{ROOT}/docs/examples/own_method.py:fednova'
  study = Study(start, tmp_path, ('fed_medlora', own, 'own:mine'))
  (part,) = parts(study, ['in_domain'], [start.seed])
  assert {name: row.folder.name for name, row in part.rows.items()} == {
    'fed_medlora': 'fed_medlora', 'own:fednova': 'own_fednova', 'own:mine': 'own_mine'}
  chosen = [row.config.fed for row in part.rows.values()]
  assert [fed.aggregator for fed in chosen] == ['mean', own, 'median']
  assert [fed.size_power for fed in chosen] == [1.0, 1.0, 0.5]
  assert all(leaves_adapter(start, name) for name in study.regimes)
  # Without one adapter for all: private leaves, also by a sharing of one's own; a changed base.
  mine = tmp_path / 'mine.py'
  mine.write_text(
    'from fedmedjax.fed.sharing import only_a\n\n'
    'def private(paths):\n  return only_a(paths=paths)\n')
  apply_preset(start, {'name': 'private', 'sharing': f'{mine}:private'})
  for name in ('single_site', 'fedsa_lora', 'own:private', 'flora', 'zero_shot', 'fed_bert', 'api'):
    assert not leaves_adapter(start, name), name
  assert leaves_adapter(start, 'ffa_lora') and leaves_adapter(start, 'rolora')
  apply_preset(start, {'name': 'mine', 'aggregator': 'median', 'size_power': 0.5})
  for regimes, message in (
      (('own:other',), r"--regimes: 'own:other' is not one of .*own:mine, FILE.py:FUNCTION"),
      (('nothing.py:f',), 'nothing.py cannot be read'),
      ((own, own), "is the second called 'own:fednova'")):
    with pytest.raises(InputError, match=message):
      parts(study._replace(regimes=regimes), ['in_domain'], [start.seed])


def test_named_choices_are_the_same_in_config_and_experiment():
  from fedmedjax.experiment import build
  from fedmedjax.experiment import config as checks
  assert checks.LEARNERS == tuple(build.LEARNERS)


def test_the_references_hyper_parameters_of_its_bert():
  """docs/methods.md, section 6."""
  chosen = config('--config=configs/clinical_bert.py')
  assert (chosen.fed.preset, chosen.bert.learning_rate) == ('fed_bert', 2e-4)
  assert (chosen.fed.rounds, chosen.fed.local_epochs, chosen.fed.batch_size) == (3, 3, 64)
  assert (chosen.fed.size_power, chosen.fed.loss_power, chosen.fed.local_steps) == (1.0, 0.0, 0)


@pytest.mark.parametrize('name, targets', [
  ('llama32_1b', 7), ('llama31_8b', 7), ('deepseek_r1_distill_8b', 7), ('qwen3_4b', 4)])
def test_the_references_hyper_parameters(name, targets):
  """docs/methods.md, section 6."""
  chosen = config(f'--config=configs/{name}.py')
  assert (chosen.lora.rank, chosen.lora.alpha, len(chosen.lora.targets)) == (16, 64.0, targets)
  optim = chosen.optim
  assert (optim.learning_rate, optim.b1, optim.b2, optim.eps) == (2e-4, 0.9, 0.999, 1e-8)
  assert (optim.weight_decay, optim.clip_norm, optim.warmup_share) == (0.0, 1.0, 0.05)
  assert (chosen.fed.rounds, chosen.fed.local_epochs, chosen.fed.batch_size) == (3, 2, 4)
  assert chosen.data.max_length == 667 and len(chosen.data.sites) == 3
  assert (chosen.model.dtype, chosen.model.quantization) == ('bfloat16', 'nf4')

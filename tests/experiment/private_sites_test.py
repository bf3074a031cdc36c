"""Runs with sites as units of privacy: refusals, noise, kinds of rounds, and resuming."""

import json

import jax
import numpy as np
import pytest
from played_rounds import Quiet

from fedmedjax import tree
from fedmedjax.experiment import private_sites
from fedmedjax.experiment.build import load_data, prepare
from fedmedjax.experiment.command_line import parse
from fedmedjax.experiment.round_spending import band_coefficients
from fedmedjax.fed.correlated_noise import sensitivity
from fedmedjax.store import files, secret
from fedmedjax.train.loop import first_inputs
from fedmedjax.train.run import run
from fedmedjax.types import InputError

SMALL = (
  '--config=fedmedjax:ablation:fed_medlora', '--config.fed.rounds=3', '--config.fed.local_steps=2',
  '--config.fed.batch_size=4', '--config.fed.size_power=0', '--config.tagger.width=8',
  '--config.tagger.buckets=64', '--config.lora.rank=2', '--config.data.max_train_sentences=20',
  '--config.data.synthetic_notes=12', '--config.data.validation_examples=4',
  '--config.eval.max_examples=1', '--config.eval.bootstrap_samples=2', '--config.checkpoint.keep=1')
SITE = (
  '--config.privacy.unit=site', '--config.privacy.epsilon=8', '--config.privacy.delta=0.01',
  '--config.privacy.accountant=rdp')


def config_of(*more: str):
  return parse(['x', *SMALL, *more], lambda values: None)[0]


@pytest.fixture(scope='module')
def data():
  return load_data(config_of(), Quiet())


def played(config, data):
  """(study, the state after one round, its metrics)."""
  study = prepare(config, data)
  state, metrics = study.algorithm.round(*first_inputs(study))
  return study, state, metrics


def test_the_noise_of_a_round_is_the_configs_and_spares_what_is_frozen(data):
  """FFA-LoRA: B has sigma * clip / sites beside an update that is tiny against it; A stays as it
  was drawn, to the bit."""
  study, state, metrics = played(config_of(
    *SITE, '--config.fed.sharing=only_b', '--config.privacy.noise=2',
    '--config.privacy.clip=1000'), data)
  moved = jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), state.adapter,
                       study.trainable.adapter)
  leaves = dict(zip(tree.paths(moved), jax.tree.leaves(moved), strict=True))
  noise = np.concatenate([x.ravel() for path, x in leaves.items() if path.endswith('/b')])
  assert noise.std() == pytest.approx(2 * 1000 / 5, rel=4 / np.sqrt(2 * noise.size))
  assert not any(x.any() for path, x in leaves.items() if path.endswith('/a'))
  assert study.ledger.noise == 2 and study.method.aggregator.gives == {'noise'}
  np.testing.assert_allclose(metrics.weights, 1 / 5)


@pytest.mark.parametrize('more', [
  ('--config.fed.secure_aggregation=True', '--config.privacy.missing=2'),
  ('--config.privacy.clipping=gauge', '--config.fed.signal=peer', '--config.fed.loss_power=1',
   '--config.fed.size_power=1', '--config.privacy.size_cap=10', '--config.privacy.loss_clip=5',
   '--config.privacy.loss_noise=3'),
], ids=['secure', 'gauge and peers'])
def test_kinds_of_private_rounds(data, more):
  """They move, stay finite, and their sigma is calibrated so that the budget is kept."""
  study, state, metrics = played(config_of(*SITE, *more), data)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.adapter))
  assert float(metrics.step_norm) > 0 and study.ledger.noise > 0.5
  if '--config.fed.signal=peer' in more:
    assert np.isfinite(metrics.validation_loss).all() and np.ptp(metrics.weights) > 0
    assert (study.validation.answers == 1).all()


def test_correlated_noise_is_accounted_by_the_rounds_that_sites_take(data):
  """The rows of all rounds are Gaussian mechanisms: their inverse squares add up to |C u|^2 over
  sigma^2, for each of 5 sites that take turns in twos."""
  config = config_of(
    *SITE, '--config.privacy.mechanism=banded', '--config.privacy.bands=3', '--config.fed.rounds=7',
    '--config.fed.sampler=cyclic', '--config.fed.cohort_size=2', '--config.privacy.noise=4')
  study = prepare(config, data)
  coefficients = band_coefficients(7, 3)
  names = [site.name for site in data.sites]
  turns = {name: [] for name in names}
  for number in range(7):
    for site in study.communication.sampler.draw(number).sites:
      turns[names[site]].append(number)
  for name in names:
    rows = [row for number in range(7) for row in study.ledger.rows(number).get(name, ())]
    assert sum(row.steps / row.sigma**2 for row in rows) == pytest.approx(
      (sensitivity(coefficients, 7, turns[name]) / 4)**2, rel=1e-6)


def test_the_multiplier_that_secure_aggregation_is_accounted_by():
  values = {
    'privacy.unit': 'site', 'fed.train': True, 'fed.secure_aggregation': True, 'fed.pooled': False,
    'fed.cohort_size': 4, 'fed.buffer': 0, 'privacy.missing': 1, 'privacy.clip': 2.0}
  adapter = {'a': np.zeros((100, 100))}
  effective = private_sites.effective_noise(values, adapter)
  assert effective(0.8) == pytest.approx(0.8 * 5000 / 5050, rel=1e-9)
  assert private_sites.effective_noise(values | {'fed.secure_aggregation': False}, adapter) is None


@pytest.mark.parametrize('more, key', [
  (('--config.fed.size_power=1',), 'size_cap'),
  (('--config.fed.secure_aggregation=True', '--config.privacy.accountant=pld'), 'accountant'),
  (('--config.privacy.mechanism=banded', '--config.simulation.failure=0.1'), 'mechanism'),
  (('--config.privacy.missing=1',), 'missing'),
  (('--config.privacy.clipping=gauge', '--config.fed.sharing=only_b'), 'sharing'),
])
def test_what_breaks_the_promise_is_refused(more, key):
  with pytest.raises(InputError, match=key):
    config_of(*SITE, *more)


def test_a_run_with_correlated_noise_resumes_bitwise(data, tmp_path, monkeypatch):
  """Stopped after round 2 of 3: the same bits of adapter, spending and scores as in one go, also
  though the system would give another secret now. Without its own it does not go on."""
  own = 0x1F2E3D4C5B6A79881726354453627180
  given = iter((own, own, 6))
  monkeypatch.setattr(secret.secrets, 'randbits', lambda bits: next(given))
  config = config_of(
    *SITE, '--config.privacy.mechanism=banded', '--config.privacy.bands=2',
    '--config.fed.sampler=cyclic', '--config.fed.cohort_size=2')
  run(config, tmp_path / 'whole', Quiet(), data)
  with pytest.raises(KeyboardInterrupt):
    run(config, tmp_path / 'parts', Quiet('round 2'), data)
  kept = tmp_path / 'parts' / secret.FILE
  assert kept.stat().st_mode & 0o777 == 0o600 and int(kept.read_text(), 16) == own
  kept.rename(tmp_path / 'away')
  with pytest.raises(InputError, match='noise_secret: is not there'):
    run(config, tmp_path / 'parts', Quiet(), data)
  (tmp_path / 'away').rename(kept)
  run(config, tmp_path / 'parts', Quiet(), data)
  whole, parts = (files.read_lines(tmp_path / name / 'metrics.jsonl') for name in (
    'whole', 'parts'))
  assert [line['privacy'] for line in whole] == [line['privacy'] for line in parts]
  assert [line['step_norm'] for line in whole] == [line['step_norm'] for line in parts]
  summaries = [json.loads((tmp_path / name / 'summary.json').read_text()) for name in (
    'whole', 'parts')]
  assert summaries[0]['privacy'] == summaries[1]['privacy']
  assert summaries[0]['privacy']['epsilon'] <= 8
  adapters = [sorted((tmp_path / name).rglob('adapter*.safetensors')) for name in (
    'whole', 'parts')]
  assert adapters[0]
  told = [path for path in (tmp_path / 'whole').rglob('*') if path.is_file() and any(
    text in path.read_bytes() for text in (f'{own:x}'.encode(), str(own).encode()))]
  assert [path.name for path in told] == [secret.FILE]
  for one, other in zip(*adapters, strict=True):
    assert one.read_bytes() == other.read_bytes()

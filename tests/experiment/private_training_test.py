"""Training with a unit of privacy: what an ordinary round is, with noise and clip taken off."""

from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from played_rounds import play_rounds

import fedmedjax as fm
from fedmedjax import tree
from fedmedjax.data import round_plan
from fedmedjax.data import schedule as schedules
from fedmedjax.data.pieces import drawable
from fedmedjax.experiment import build, private_sites
from fedmedjax.experiment.build import load_data, prepare
from fedmedjax.experiment.private_training import check_patients
from fedmedjax.experiment.shipped import ablation
from fedmedjax.fed.privacy import Private
from fedmedjax.fed.private_gradient import private_gradient
from fedmedjax.runtime.progress import Reporter
from fedmedjax.types import Document, InputError, SiteCorpus


def tiny(unit='example', **privacy):
  """Three sites of the word tagger, two rounds of three steps."""
  config = ablation.get_config('fed_medlora')
  config.lora.rank = 2
  config.tagger.update(width=8, buckets=64)
  config.data.update(synthetic_notes=6, max_train_sentences=20)
  config.data.partition.sites = 3
  config.fed.update(rounds=2, local_steps=3, batch_size=4)
  config.optim.clip_norm = 0.0  # of the ordinary round; the private one has none
  config.privacy.update({
    'unit': unit, 'epsilon': 20.0, 'delta': 1e-3, 'noise': 1.0} | privacy)
  return config


@pytest.fixture(scope='module')
def data():
  return load_data(tiny(), Reporter(quiet=True))


def play(study, key=0):
  """The adapter after two rounds, and their metrics."""
  state, reports = play_rounds(study, 2, key)
  return jax.device_get(state.adapter), reports


def distance(one, other) -> float:
  """Of two adapters, over the norm of the first."""
  return float(tree.norm(jax.tree.map(jnp.subtract, one, other)) / tree.norm(one))


def fixed_order(units, expected, seed):
  """The batches of an ordinary run, each example a unit."""
  ordinary = round_plan.in_epochs(expected, seed)
  return ordinary._replace(members=lambda *step: [
    (members, np.arange(len(members))) for members, _ in ordinary.members(*step)])


def ordinary_denominator(loss_fn, private, keep, **how):
  """The sum over the step's own number of supervised words, as without privacy."""
  made = private_gradient(loss_fn, private, keep=keep, **how)

  def gradient(adapter, base, batch, key):
    loss, found = made(adapter, base, batch, key)
    return loss, jax.tree.map(lambda x: x / loss_fn(adapter, base, batch)[1], found)

  return gradient


def test_without_noise_and_clip_it_is_an_ordinary_round(data, monkeypatch):
  """Same batches and denominator: 1e-6 of the adapter's norm after two rounds."""
  plain, before = play(prepare(tiny(''), data))
  monkeypatch.setattr(schedules, 'poisson', fixed_order)
  monkeypatch.setattr(private_sites, 'planned_privacy', lambda *_: Private(np.inf, 0.0, 1.0))
  monkeypatch.setattr(build, 'gradient_maker', lambda private, schedule: {'gradient': partial(
    ordinary_denominator, private=private, together=3, drawn=schedule.layout.drawn)})
  found, after = play(prepare(tiny(), data))
  assert distance(plain, found) <= 1e-6
  np.testing.assert_allclose(after[0].train_loss, before[0].train_loss, rtol=1e-5)


def test_a_study_prepared_in_python_has_a_secret_of_its_own(data):
  one, other = (fm.prepare(tiny(), data).secret for _ in range(2))
  assert one is not None and other is not None and one != other
  assert fm.prepare(tiny(noise_from_seed=True), data).secret is None
  assert fm.prepare(tiny('', epsilon=0.0, noise=0.0), data).secret is None


def test_a_run_is_noisy_repeatable_and_shows_what_it_drew(data):
  """The same steps and numbers again, as a run that is resumed has them; others by another key,
  which nothing but noise is made of; and other steps of a secret."""
  study, again = prepare(tiny(), data), prepare(tiny(), data)
  one, reports = play(study)
  for number in range(2):
    ours, theirs = (schedules.round_arrays(s.schedule, number)[0] for s in (study, again))
    assert all(map(np.array_equal, ours, theirs))
  assert all(map(np.array_equal, *map(jax.tree.leaves, (one, play(study)[0]))))
  # Of a norm that is mostly the first A's.
  assert distance(one, play(study, 9)[0]) > 0.01
  drawn_of = lambda s: [step.members.tolist() for step in s.schedule.plan[0][0]]  # noqa: E731
  assert drawn_of(study) == drawn_of(again) != drawn_of(prepare(tiny(), data, secret=2**100 + 1))
  assert all(np.isfinite(report.train_loss).all() and report.sound.all() for report in reports)
  drawn = study.schedule.draws(0)
  assert [(one.site, one.steps) for one in drawn] == [(0, 3), (1, 3), (2, 3)]
  for row in drawn:
    count = len(set(data.sites[row.site].tasks[0].units))  # sentences; long ones are several rows
    assert (row.units, row.probability) == (count, min(1, 4 / count))


def test_notes_are_units_and_their_names_are_read():
  config = tiny('note', unit_examples=3)
  config.data.partition.unit = 'note'
  config.data.max_train_sentences = 0
  found = load_data(config, Reporter(quiet=True))
  part = found.sites[0].tasks[0]
  assert len(part.units) == len(part.train) and 1 < len(set(part.units)) < len(part.train)
  study = prepare(config, found)
  assert study.schedule.draws(0)[0].units == len(set(part.units))
  batches, _ = schedules.round_arrays(study.schedule, 0)
  assert batches.tokens.shape[3] == 3
  assert all(len(np.unique(step.units, return_counts=True)[1]) == len(set(
    part.units[i] for i in step.members)) and np.bincount(step.units, minlength=1).max() <= 3
             for step in study.schedule.plan[0][0])
  # The examples are the same, read one by one or all together.
  config.privacy.unit = ''
  ordinary = load_data(config, Reporter(quiet=True)).sites[0].tasks[0]
  assert not ordinary.units
  assert all(map(np.array_equal, [one.tokens for one in ordinary.train],
                 [one.tokens for one in part.train]))


def test_what_does_not_go_together_is_refused(data):
  config = tiny()
  config.fed.micro_batch = 2
  with pytest.raises(InputError, match='config.fed.micro_batch=2: .*config.privacy.microbatch'):
    prepare(config, data)


def test_a_single_patient_is_refused():
  """Reading makes each of its notes a source of its own, by which it would be none."""
  notes = tuple(Document(name, 'text', (), (), 'one') for name in 'ab')
  counts = Counter()
  site = SiteCorpus('north', (), tuple(drawable(notes, counts)), (), dict(counts))
  values = {'privacy.unit': 'patient', 'fed.train': True}
  with pytest.raises(InputError, match="2 training notes of site 'north' are all of one source"):
    check_patients(values, [site])
  check_patients(values, [site._replace(train=notes, report={})])
  check_patients(values | {'privacy.unit': 'note'}, [site])

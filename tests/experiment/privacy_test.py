"""A run's noise, its ledger, what it refuses and what leaves, on plans without any notes."""

import math
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from fedmedjax.experiment import accounting, leaving, privacy, round_spending
from fedmedjax.experiment.accounting import TRAINED, Spending, epsilon, gaussian
from fedmedjax.experiment.config import leaves, validate
from fedmedjax.experiment.defaults import get_config
from fedmedjax.fed.participation import Cohort, Participation
from fedmedjax.fed.privacy import Private
from fedmedjax.report.privacy import privacy_sentence
from fedmedjax.types import InputError


class Drawn(NamedTuple):
  """What `Schedule.draws` says of some steps."""

  site: int
  task: int
  probability: float
  capacity: int
  units: int
  steps: int


class Plan:
  """Two sites of 40 and 100 units that take 5 steps a round each, 4 units on average."""

  units, batch_size, weights, sizes = True, 4, np.ones(2), (40, 100)
  sites = tuple(SimpleNamespace(name=name, tasks=(SimpleNamespace(validation=(1,)),))
                for name in ('north', 'south'))

  def __init__(self, turns=((0, 1),) * 6):
    self.plan = tuple(
      tuple((0,) * 5 if site in sites else () for site in (0, 1)) for sites in turns)

  def draws(self, number, cohort=None, steps=None):
    counts = [len(own) for own in self.plan[number]] if cohort is None else [
      dict(zip(cohort, steps, strict=True)).get(site, 0) for site in (0, 1)]
    return [Drawn(site, 0, 4 / size, 18, size, count)
            for site, (size, count) in enumerate(zip(self.sizes, counts, strict=True)) if count]


def values(**keys):
  config = get_config('fed_medlora')
  config.privacy.update(unit='example', epsilon=3.0, delta=1e-5)
  for key, value in keys.items():
    section, _, name = key.partition('__')
    config[section][name] = value
  return leaves(config.to_dict())


NOISY = SimpleNamespace(aggregator=SimpleNamespace(gives={'noise'}))


def ledger_of(plan, **keys):
  flat = values(**keys)
  private = privacy.planned_privacy(flat, np.ones(2), plan)
  return private, privacy.make_ledger(flat, private, plan, NOISY)


def turn(*steps):
  """Both sites take part, so many steps each."""
  return Participation(
    Cohort(np.arange(2), np.ones(2, bool)), np.array(steps), np.ones(2), np.zeros(2))


def line(ledger, number, *steps):
  rows = privacy.round_rows(ledger, number, turn(*steps))
  return {'round': number + 1, 'sites': ['north', 'south'], 'privacy': privacy.as_line(rows)}


def test_all_planned_rounds_spend_the_budget_and_no_more():
  """The smaller site is drawn from more often, so it needs most noise, and the other has less."""
  plan = Plan()
  private, ledger = ledger_of(plan)
  lines = [line(ledger, number, 5, 5) for number in range(6)]
  entry = privacy.entry(ledger, lines, 6)
  assert private.clip == 1 and private.denominator == 4
  assert 0.99 * 3 < entry['epsilon'] == entry['sites']['north'] <= 3
  assert entry['sites']['south'] < entry['epsilon']
  # By hand: 30 steps of the mechanism.
  assert entry['epsilon'] == epsilon([Spending(TRAINED, private.noise, 0.1, 18, 40, 30)], 1e-5)
  assert not privacy.overspends(ledger, lines[:5], 5, turn(5, 5))
  assert privacy.overspends(ledger, lines, 6 - 1, turn(5, 5)) == 'north'
  # Nobody is asked of sites that sent nothing, and late ones have spent what they took.
  assert privacy.round_rows(ledger, 0, turn(0, 2)) == {
    'south': [Spending(TRAINED, private.noise, 0.04, 18, 100, 2)]}
  assert not privacy.overspends(ledger, lines, 5, turn(0, 5))
  said = privacy_sentence({'privacy': entry})
  up = f'{math.ceil(1000 * entry["epsilon"]) / 1000:.3f}'
  for part in ('example', 'put to zero', up, 'of 3', '1e-05', 'Poisson', 'PLD, dp-accounting',
               f'{private.noise:.4g}'):
    assert part in said, part
  assert 'stopped' not in said and 'stopped after 4 of 6 rounds' in privacy_sentence(
    {'privacy': privacy.entry(ledger, lines[:4], 6)})


def test_noise_that_is_given_ends_the_run_before_it_overspends():
  """The ledger is the lines alone: with another one, made anew, the same round is the last."""
  plan = Plan()
  _, ledger = ledger_of(plan, privacy__noise=1.0)
  lines = []
  for number in range(6):
    if privacy.overspends(ledger, lines, number, turn(5, 5)):
      break
    lines.append(line(ledger, number, 5, 5))
    ledger = ledger_of(plan, privacy__noise=1.0)[1]
  of = lambda rounds: epsilon([Spending(TRAINED, 1.0, 0.1, 18, 40, 5 * rounds)], 1e-5)  # noqa: E731
  assert 0 < len(lines) < 6
  assert of(len(lines)) <= 3 < of(len(lines) + 1)
  entry = privacy.entry(ledger, lines, 6)
  assert entry['epsilon'] == of(len(lines))
  assert privacy.is_done({'rounds': len(lines), 'privacy': entry}, 6)
  assert not privacy.is_done({'rounds': len(lines)}, 6)
  with pytest.raises(InputError, match='the first round alone spends .* of north at'):
    ledger_of(plan, privacy__noise=0.5)
  with pytest.raises(InputError, match='north has 40 units'):
    ledger_of(plan, privacy__delta=0.03, privacy__noise=3.0)


def test_losses_on_validation_notes_are_counted():
  """Of units below the site they are others' losses; of a site they are its own."""
  keys = dict(fed__loss_power=1.0, fed__signal='answer', privacy__loss_noise=8.0,
              privacy__loss_clip=9.0, privacy__noise=4.0)
  _, below = ledger_of(Plan(), **keys)
  assert privacy.round_rows(below, 0, turn(5, 0))['south'] == [gaussian('validation', 8.0)]
  _, server = ledger_of(Plan(), **keys, data__server_validation='phee')
  assert 'south' not in privacy.round_rows(server, 0, turn(5, 0))
  _, site = ledger_of(Plan(), **keys, privacy__unit='site', privacy__epsilon=9.0)
  assert privacy.round_rows(site, 0, turn(5, 0)) == {
    'north': [gaussian(TRAINED, 4.0), gaussian(TRAINED, 8.0)], 'south': [gaussian(TRAINED, 8.0)]}


def test_sites_spend_where_they_take_part():
  plan = Plan(((0,), (0, 1), (0,), (1,)))
  private, ledger = ledger_of(plan, privacy__unit='site')
  assert private.denominator == 3 - 1  # two sites, all of them drawn
  entry = privacy.entry(
    ledger, [line(ledger, n, *(5 * bool(own) for own in plan.plan[n])) for n in range(4)], 4)
  assert accounting.analytic_gaussian(
    math.sqrt(3) / private.noise, entry['epsilon']) == pytest.approx(1e-5, rel=0.01)
  assert 'federation' in privacy_sentence({'privacy': entry})
  with pytest.raises(InputError, match='has no mechanism for it'):
    privacy.make_ledger(
      values(privacy__unit='site'), private, plan,
      SimpleNamespace(aggregator=SimpleNamespace(gives={'weighted_mean'})))


def test_correlated_noise_is_accounted_row_by_row(monkeypatch):
  """C of two bands over three rounds, by hand; C u of a site moves row t by its share."""
  monkeypatch.setattr(round_spending, 'band_coefficients', lambda rounds, bands: (0.8, 0.6))
  plan = Plan(((0, 1), (0,), (0,)))
  private, ledger = ledger_of(
    plan, privacy__unit='site', privacy__mechanism='banded', privacy__noise=5.0)
  rows = [privacy.round_rows(ledger, number, turn(5, 5)) for number in range(3)]
  moved = {name: [5 / row.sigma for found in rows for row in found.get(name, ())]
           for name in ('north', 'south')}
  # north: rounds 1 to 3; south: round 1 alone, which row 2 still holds, as one Gaussian in all.
  assert moved['north'] == pytest.approx([0.8, 1.4, 1.4])
  assert moved['south'] == pytest.approx([0.8, 0.6])
  spent = privacy.spent([{'privacy': privacy.as_line(found)} for found in rows])
  assert epsilon(spent['south'], 1e-5) == pytest.approx(
    epsilon([gaussian(TRAINED, 5.0)], 1e-5), rel=1e-3)


def test_bands_lose_nothing_of_their_norm():
  c = round_spending.band_coefficients(8, 3)
  assert len(c) == 3 and c[0] >= c[1] >= c[2] > 0
  assert np.linalg.norm(c) == pytest.approx(1)


@pytest.mark.parametrize(('keys', 'said'), [
  (dict(privacy__delta=0.0), 'config.privacy.delta=0.0: an epsilon says nothing'),
  (dict(privacy__epsilon=0.0), 'config.privacy.epsilon=0.0: the budget'),
  (dict(privacy__unit='site', privacy__epsilon=10.5), 'config.privacy.epsilon=10.5: above 10'),
  (dict(privacy__unit=''), "promises nothing without config.privacy.unit"),
  (dict(fed__ema=0.1), 'config.fed.ema=0.1'),
  (dict(fed__error_feedback=True), 'config.fed.error_feedback=True'),
  (dict(privacy__adjacency='add_remove'), "config.privacy.adjacency='add_remove'"),
  (dict(privacy__missing=1), 'config.privacy.missing=1: with'),
  (dict(privacy__size_cap=9.0), 'config.privacy.size_cap=9.0: with'),
  (dict(privacy__unit='site', fed__sharing='only_a'), "config.fed.sharing='only_a'"),
  (dict(log__steps=True), "training loss, which must stay"),
  (dict(eval__every=1), 'config.eval.every=1'),
  (dict(data__shots=2), 'config.data.shots=2'),
  (dict(fed__loss_power=1.0), "config.fed.signal='loss'"),
  (dict(fed__loss_power=1.0, fed__signal='answer'), 'would leave as they are'),
  (dict(fed__loss_power=1.0, fed__signal='answer', privacy__loss_noise=2.0), 'belong together'),
  (dict(fed__loss_power=1.0, fed__signal='answer', privacy__loss_noise=2.0, privacy__loss_clip=9.0,
        privacy__adjacency='add_remove'), "config.privacy.adjacency='add_remove'"),
  (dict(fed__loss_power=1.0, checkpoint__keep_best=1, data__server_validation='phee'),
   'config.checkpoint.keep_best=1'),
  (dict(privacy__unit='site', fed__aggregator='median', fed__loss_power=0.0),
   "config.fed.aggregator='median'"),
  (dict(fed__contribution='shapley'), "config.fed.contribution='shapley': with"),
  (dict(fed__aggregator='q_fedavg'), 'weighs sites by their training loss'),
  (dict(privacy__unit='site', fed__top_k=0.5, fed__size_power=0.0), 'config.fed.outbound'),
  (dict(privacy__mechanism='banded'), "config.privacy.mechanism='banded'"),
  (dict(privacy__unit='patient', data__partition=dict(kind='iid')), 'config.data.partition.kind'),
], ids=lambda x: next(iter(x.items()))[0] if isinstance(x, dict) else '')
def test_what_breaks_the_promise_is_refused(keys, said):
  config = get_config('fed_medlora')
  config.privacy.update(unit='example', epsilon=3.0, delta=1e-5)
  validate(config)
  for key, value in keys.items():
    section, _, name = key.partition('__')
    if isinstance(value, dict):
      config[section][name].update(value)
    else:
      config[section][name] = value
  with pytest.raises(InputError) as error:
    validate(config)
  assert said in str(error.value) and '\n' not in str(error.value)


def test_a_site_may_be_told_to_accept_much():
  config = get_config('fed_medlora')
  config.privacy.update(unit='site', epsilon=20.0, delta=1e-3, accept=True)
  config.fed.size_power = 0.0
  validate(config)
  config.privacy.unit = ''
  config.privacy.epsilon = 0.0
  validate(config)


def test_what_is_not_noised_stays_at_its_site():
  """A line keeps its places, and a key that nobody has judged is gone."""
  line = {
    'round': 1, 'sites': ['a', 'b'], 'train_loss': [0.5, 0.7], 'last_loss': [0.4, 0.6],
    'update_norm': [1.0, 2.0], 'weights': [0.5, 0.5], 'tokens': 812, 'rising': ['a'],
    'quarantined': ['b'], 'product_gap': np.array(0.5), 'validation_loss': [3.0, 4.0],
    'of_tomorrow': [7, 8]}
  below = leaving.leaving(line, leaving.leaves_as(values()))
  assert below == {
    'round': 1, 'sites': ['a', 'b'], 'train_loss': [None, None], 'last_loss': [None, None],
    'update_norm': [1.0, 2.0], 'weights': [0.5, 0.5], 'tokens': 0, 'rising': [],
    'quarantined': ['b'], 'product_gap': 0.5, 'validation_loss': [None, None]}
  site = leaving.leaving(line, leaving.leaves_as(values(privacy__unit='site')))
  assert (site['update_norm'], site['quarantined'], site['product_gap']) == ([None, None], [], None)
  assert leaving.leaving(line, None) == line


def test_runs_of_one_seed_with_other_noise_have_other_numbers_in_it():
  """Else 3 (sum + 2 z) - 2 (sum + 3 z) of two runs would be the sum; the same run has the same,
  also where it goes on with more rounds."""
  flat, noise_tag = values(), privacy.noise_tag
  others = ({}, {'privacy.bands': 9}, {'privacy.loss_noise': 1.0})
  tags = [noise_tag(flat | more, Private(1.0, noise, 8.0))
          for noise in (2.0, 3.0) for more in others]
  assert len({*tags}) == 6 and noise_tag(flat, Private(1.0, 2.0, 8.0)) == tags[0]
  assert noise_tag(flat | {'fed.rounds': 9}, Private(1.0, 2.0, 8.0)) == tags[0]
  assert all(0 <= tag < 2**32 for tag in tags)


def test_a_delta_that_would_publish_a_unit_is_refused_of_every_site_that_is_ever_drawn():
  """South has 100 units and comes in the last round only; 1/100 is too much, less is not."""
  late = Plan(((0,),) * 5 + ((1,),))
  with pytest.raises(InputError, match=r'delta=0.01: south has 100 units \(example\)'):
    ledger_of(late, privacy__delta=0.01, privacy__noise=4.0)
  assert ledger_of(late, privacy__delta=0.009, privacy__noise=4.0)[1].delta == 0.009

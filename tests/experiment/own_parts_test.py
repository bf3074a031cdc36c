"""Parts of a user's own: found, refused in one line, recorded; and what builders are given."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratics import ADAPTER, SIZES, data, entries, federation, play

from fedmedjax.experiment import contracts, methods, own_parts
from fedmedjax.experiment.config import leaves, validate
from fedmedjax.experiment.defaults import get_config
from fedmedjax.fed import rules, sharing
from fedmedjax.fed.aggregators.conventions import completed
from fedmedjax.fed.builders import build
from fedmedjax.fed.types import Aggregate, Aggregator
from fedmedjax.tree import weighted_sum
from fedmedjax.types import InputError

EXAMPLE = 'docs/examples/own_method.py'


def values(**changes) -> dict:
  config = get_config('fed_medlora')
  config.update_from_flattened_dict({key.replace('__', '.'): v for key, v in changes.items()})
  return leaves(config.to_dict())


def own(name: str) -> Aggregator:
  flat = values(fed__aggregator=f'{EXAMPLE}:{name}')
  return methods.method(flat, own_parts.own_parts(flat)).aggregator


def test_fednova_by_hand():
  """Steps (1, 2, 4) of rate .5 from 0 towards targets (1, 2, 4) of curvature 1: updates
  (.5, 1.5, 3.75), so (.5, .75, .9375) a step. p = (.1, .3, .6) weighs them to .8375, and
  sum p tau = .1 + .6 + 2.4 = 3.1: the server moves by 2.59625, where FedAvg moves by 2.75."""
  state, metrics = play(federation(aggregator=own('fednova')), data(steps=(1, 2, 4)))
  np.testing.assert_allclose(entries(state.adapter), [2.59625] * 2, rtol=1e-5)
  np.testing.assert_allclose(metrics.weights, SIZES / SIZES.sum(), rtol=1e-6)
  assert np.isnan(metrics.validation_loss).all()
  plain, _ = play(federation(), data(steps=(1, 2, 4)))
  np.testing.assert_allclose(entries(plain.adapter), [2.75] * 2, rtol=1e-5)


def test_fednova_of_equal_steps_is_the_mean():
  state, _ = play(federation(aggregator=own('fednova')), data(steps=(2, 2, 2)), 2)
  plain, _ = play(federation(), data(steps=(2, 2, 2)), 2)
  np.testing.assert_allclose(entries(state.adapter), entries(plain.adapter), rtol=1e-5)


def test_q_fedavg_by_hand():
  """One step of rate .5: updates u = (.5, 1, 2) an entry, of which there are 4. At the anchor, 0,
  a site's loss is the mean over its steps of 4 t^2 / 2 = (2, 8, 32). p F u = .1 * 2 * .5 +
  .3 * 8 * 1 + .6 * 32 * 2 = 40.9; below, p F = 21.8 and p |u|^2 = .1 * 1 + .3 * 4 + .6 * 16 = 10.9:
  40.9 / 32.7."""
  state, metrics = play(federation(aggregator=own('q_fedavg')), data())
  np.testing.assert_allclose(entries(state.adapter), [40.9 / 32.7] * 2, rtol=1e-5)
  np.testing.assert_allclose(metrics.weights, np.array([.2, 2.4, 19.2]) / 21.8, rtol=1e-5)


def test_q_of_zero_is_fedavg_and_the_loss_is_of_the_anchor():
  """In the second round the anchor has moved: the loss is not that of its steps on the way. With
  q = 1 the weights are in proportion to n and that loss."""
  flat = values()
  part = own_parts.from_python('fed.aggregator', own_parts.own_parts(
    values(fed__aggregator=f'{EXAMPLE}:q_fedavg'))['fed.aggregator'].builder(q=0.0))
  zero = methods.method(flat, {'fed.aggregator': part}).aggregator
  state, _ = play(federation(aggregator=zero), data(steps=(3, 1, 2)), 2)
  plain, _ = play(federation(), data(steps=(3, 1, 2)), 2)
  np.testing.assert_allclose(entries(state.adapter), entries(plain.adapter), rtol=1e-5)
  one = federation(aggregator=own('q_fedavg'))
  anchor = entries(play(one, data(steps=(3, 1, 2)))[0].adapter)[0]
  _, metrics = play(one, data(steps=(3, 1, 2)), 2)
  losses = SIZES * [(anchor - target) ** 2 for target in (1, 2, 4)]
  np.testing.assert_allclose(metrics.weights, losses / losses.sum(), rtol=1e-4)


def test_only_who_names_the_start_loss_pays_for_it():
  """Planted: it is computed for everybody, or given to nobody. A scan over the steps is there."""
  def lowered(aggregator):
    algorithm = federation(aggregator=aggregator)
    state = algorithm.init(ADAPTER)
    return str(jax.make_jaxpr(lambda *a: algorithm.round(*a))(
      state, jnp.float32(1), data(), jnp.arange(3), None, jax.random.key(0))).count('scan[')

  assert lowered(own('q_fedavg')) == lowered(own('fednova')) + 1


def test_builders_get_what_their_signature_names():
  given = methods.hyper_parameters(values(fed__trim=0.2, fed__local_steps=7))
  seen = build(lambda trim, rank, cohort_size, mine=5, *, local_steps: dict(vars()), given)
  assert seen == {
    'trim': 0.2, 'rank': 16, 'cohort_size': given['num_sites'], 'mine': 5, 'local_steps': 7}
  assert build(lambda: 'nothing', given) == 'nothing'
  assert build(lambda **rest: rest, given) == given
  with pytest.raises(InputError, match=r"mine.py:f: its parameter 'mu' is no hyper-.*trim"):
    build(lambda mu: mu, given, 'mine.py:f')


def test_an_own_part_may_leave_things_out():
  """init(adapter), and (update, state) as the answer: shares of n_k are the weights."""
  def update(updates, state, *, weights, **_):
    return weighted_sum(updates, weights / weights.sum()), state + 1

  state, metrics = play(
    federation(aggregator=Aggregator(lambda adapter: jnp.int32(0), update)), data(), 2)
  plain, _ = play(federation(), data(), 2)
  np.testing.assert_allclose(entries(state.adapter), entries(plain.adapter), rtol=1e-6)
  assert int(state.aggregator) == 2
  whole = completed(Aggregator(lambda adapter, num_sites: jnp.zeros(num_sites), update))
  assert whole.init(ADAPTER, 5).shape == (5,)


BROKEN = {
  'shape': (lambda updates, state, **_: (jax.tree.map(lambda x: x[:1], updates), state),
            r"its update: leaf 'layers/q/a' is float32\[1, 1, 2, 1\], is float32\[1, 2, 1\] "),
  'nothing': (lambda updates, state, **_: (jax.tree.map(lambda x: x[0], updates), (state, None)),
              'its state after a round'),
  'integers': (lambda updates, state, **_: (jax.tree.map(lambda x: x[0], updates), state > 0),
               'its state after a round: leaf'),
  'state': (lambda updates, state, **_: (jax.tree.map(lambda x: x[0], updates), (state, state)),
            'its state after a round: leaf'),
  'weights': (lambda updates, state, *, weights, **_: Aggregate(
    jax.tree.map(lambda x: x[0], updates), state, weights), 'its weights add to 6; 1 is allowed'),
  'length': (lambda updates, state, *, weights, **_: Aggregate(
    jax.tree.map(lambda x: x[0], updates), state, weights[:2]), r'its weights are \[2\]'),
  'raises': (lambda updates, state, **_: updates['nowhere'], "KeyError: 'nowhere'"),
  'asks': (lambda updates, state, *, validation_loss, local, **_: (
    jax.tree.map(lambda x: x[0] * validation_loss(local)[0], updates), state),
    'config.data.validation_share: no site has a note to spare'),
}


@pytest.mark.parametrize('name', BROKEN)
def test_a_broken_contract_is_one_line(name):
  update, message = BROKEN[name]
  part = own_parts.from_python('fed.aggregator', Aggregator(lambda adapter: jnp.zeros(3), update))
  flat = values()
  parts = methods.method(flat, {'fed.aggregator': part})
  with pytest.raises(InputError, match=message) as error:
    contracts.check_own_parts(
      {'fed.aggregator': part}, parts, sharing.everything(), ADAPTER, 3, 3, False)
  assert '\n' not in str(error.value)


def test_other_parts_break_theirs():
  flat = values()
  plain = rules.plain()
  faults = {
    'fed.rule': (plain._replace(correct=lambda g, *rest: jax.tree.map(lambda x: x[0], g)),
                 'its corrected gradient: leaf'),
    'fed.server_optimizer': (optax.GradientTransformation(
      lambda adapter: (), lambda g, state, adapter: (g, (1.0, 2.0))),
      'its state after a round: leaf'),
    'fed.sharing': (sharing.everything()._replace(trained=lambda path, number: False),
                    'it trains none of the leaves layers/q/a, layers/q/b')}
  for key, (value, message) in faults.items():
    part = own_parts.from_python(key, value)
    parts = methods.method(flat, {key: part})
    shared = methods.sharing(flat, {key: part}, ['layers/q/a', 'layers/q/b'])
    with pytest.raises(InputError, match=message):
      contracts.check_own_parts({key: part}, parts, shared, ADAPTER, 3, 3, True)


def test_files_of_ones_own_are_refused_in_one_line(tmp_path):
  broken, empty = tmp_path / 'broken.py', tmp_path / 'empty.py'
  broken.write_text('import os\n\nvalue = 1 / 0\n')
  empty.write_text('def helper():\n  return 1\n')
  for value, message in (
      (f'{tmp_path}/none.py:f', 'none.py cannot be read: No such file'),
      (f'{broken}:f', 'broken.py, line 3: ZeroDivisionError: division by zero'),
      (f'{empty}:f', "has no function 'f'; allowed are helper"),
      (f'{empty}:helper', 'it gives int; fedmedjax.fed.types'),
      ('python:mine', r'was given in Python; give it again, as fedmedjax.run\(..., aggregator='),
      ('midrange', r'one of mean, .*, or FILE.py:FUNCTION, is allowed')):
    config = get_config('fed_medlora')
    config.fed.aggregator = value
    with pytest.raises(InputError, match=message) as error:
      validate(config)
    assert '\n' not in str(error.value) and 'config.fed.aggregator' in str(error.value)


def test_what_an_own_part_needs_is_asked_for(tmp_path):
  """By its needs, as the package's own; every own aggregator sees single updates."""
  mine = tmp_path / 'mine.py'
  mine.write_text(
    'import fedmedjax as fm\n'
    'def make(needs):\n'
    '  return fm.Aggregator(lambda adapter: (), lambda updates, state, **_: (updates, state),\n'
    '                       needs=frozenset(needs))\n'
    'def paired(): return make({"both_factors"})\n'
    'def typo(): return make({"both_factor"})\n')
  for function, changes, message in (
      ('paired', {'fed.sharing': 'only_b'}, 'this aggregator needs both factors'),
      ('typo', {}, "needs 'both_factor', which is unknown; allowed are"),
      ('paired', {'fed.secure_aggregation': True}, "needs every site's own update")):
    config = get_config('fed_medlora')
    config.update_from_flattened_dict({'fed.aggregator': f'{mine}:{function}', **changes})
    with pytest.raises(InputError, match=message):
      validate(config)


def test_a_preset_of_ones_own():
  config = get_config({'name': 'mine', 'aggregator': 'median', 'size_power': 0.5})
  validate(config)
  assert (config.fed.preset, config.fed.aggregator, config.fed.size_power) == (
    'own:mine', 'median', 0.5)
  for row, message in (
      ({'aggregator': 'median'}, 'needs a name'),
      ({'name': 'mine', 'aggregater': 'median'}, "has no key 'aggregater'")):
    with pytest.raises(ValueError, match=message):
      get_config(row)


def test_given_in_python_the_checksum_follows_text_and_numbers():
  test = test_given_in_python_the_checksum_follows_text_and_numbers
  def make(strength):
    return Aggregator(lambda adapter: (), lambda updates, state, **_: (
      jax.tree.map(lambda x: strength * x[0], updates), state))

  one, same, other = (
    own_parts.from_python('fed.aggregator', make(number)) for number in (0.1, 0.1, 0.2))
  assert one.checksum == same.checksum != other.checksum
  assert 'strength * x[0]' in one.text and one.name == f'python:{test.__name__}'
  given = own_parts.from_python('fed.rule', rules.proximal(strength=0.1))
  assert given.name == 'python:proximal' != own_parts.from_python(
    'fed.rule', rules.proximal(strength=0.2)).checksum


def test_what_fails_in_a_builder_is_one_line(tmp_path):
  """A builder may import what lies beside it, and may raise; a typo of a weight is a warning."""
  (tmp_path / 'beside_it.py').write_text('HALF = 0.5\n')
  mine = tmp_path / 'mine.py'
  mine.write_text('import beside_it\n\n\ndef build(ema):\n  return beside_it.HALF / ema\n')
  flat = values(fed__aggregator=f'{mine}:build')
  with pytest.raises(InputError, match='mine.py, line 5: ZeroDivisionError'):
    methods.method(flat, own_parts.own_parts(flat))
  flat = values(fed__aggregator=f'{mine}:build', fed__loss_power=1.0, fed__ema=0.5)
  assert methods.unread_weights(flat, own_parts.own_parts(flat)) == ['config.fed.loss_power=1.0']


def test_an_own_rule_with_control_variates_says_so():
  """Whether it does or not: masks would leave them in the clear, and products replace factors."""
  scaffold = rules.control_variates(rate=0.1)._replace(needs=frozenset())
  part = own_parts.from_python('fed.rule', scaffold)
  found = methods.method(values(), {'fed.rule': part}).rule
  assert found.needs == {'steady_factors', 'clear_control'}
  plain = own_parts.from_python('fed.rule', rules.plain())
  assert not methods.method(values(), {'fed.rule': plain}).rule.needs


# Parts as a user writes them, without a word about what they need or give.
MINE = """
import jax, optax
import fedmedjax as fm
from fedmedjax.fed.aggregators import robust
from fedmedjax.fed.aggregators.weighted_mean import adaptive_mean


def every_third():
  return fm.Sharing(lambda path, number: path.endswith('/b') or number % 3 == 2, lambda path: True)

def in_turns():
  return fm.Sharing(
    lambda path, number: path.endswith('/a') == (number % 2 == 1), lambda path: True)

def alone():
  return fm.Sharing(lambda path, number: True, lambda path: False)

def sent_but_frozen():
  return fm.Sharing(lambda path, number: path.endswith('/a'), lambda path: path.endswith('/b'))

def a_sent():
  return fm.Sharing(lambda path, number: True, lambda path: path[-1] == 'a')

def b_sent():
  return fm.Sharing(lambda path, number: True, lambda path: path[-1] == 'b')

def all_but_q():
  return fm.Sharing(lambda path, number: True, lambda path: 'q_proj' not in path)

def everything():
  return fm.Sharing(lambda path, number: True, lambda path: True)

def fails(): return fm.Sharing(lambda path, number: 1 / 0, lambda path: True)

def middle(): return robust.median()._replace(needs=frozenset())

def mean():
  return fm.Aggregator(
    lambda adapter: (),
    lambda updates, state, *, weights, **_: (jax.tree.map(lambda x: x.mean(0), updates), state))

def plain_mean(): return mean()._replace(gives=frozenset({'weighted_mean'}))

def boasting(): return mean()._replace(gives=frozenset({'best'}))

def halves(): return optax.sgd(0.5)

def adds(): return optax.sgd(1.0)

def remembers(): return optax.sgd(1.0, momentum=0.5)
"""
FAILING = MINE[:MINE.index('1 / 0')].count('\n') + 1


@pytest.mark.parametrize('preset, changes, message', [
  # Control variates, and what is owed, of factors in turns.
  ('scaffold', {'sharing': 'in_turns'}, 'go stale'),
  ('scaffold', {'sharing': 'every_third'}, 'go stale'),
  ('feddyn', {'sharing': 'in_turns'}, 'go stale'),
  ('fed_medlora', {'sharing': 'in_turns', 'error_feedback': True}, 'and so be lost'),
  # Rules that pull to what is shared, where nothing is.
  ('fedprox', {'sharing': 'alone'}, 'pull towards what is shared'),
  ('scaffold', {'sharing': 'alone'}, 'pull towards what is shared'),
  ('fedprox', {'sharing': 'sent_but_frozen'}, 'pull towards what is shared'),
  ('centralised', {'sharing': 'alone'}, 'pooled training has one site'),
  # One factor of a pair, whose product the server lacks.
  ('fed_medlora_plus', {'sharing': 'a_sent'}, 'a factor stays at its site'),
  ('fed_medlora_plus', {'sharing': 'b_sent'}, 'a factor stays at its site'),
  ('flora', {'sharing': 'a_sent'}, 'needs both factors'),
  ('flexlora', {'sharing': 'in_turns'}, 'needs both factors'),
  ('fed_medlora', {'sharing': 'fails'}, f'mine.py, line {FAILING}: ZeroDivisionError'),
  # Control variates under what is no mean, or a server that does otherwise.
  ('scaffold', {'aggregator': 'middle'}, 'under a mean of the updates'),
  ('feddyn', {'aggregator': 'middle'}, 'under a mean of the updates'),
  ('feddyn', {'aggregator': 'mean'}, "gives={'weighted_mean'}"),
  ('feddyn', {'server_optimizer': 'halves'}, 'gives the next adapter itself'),
  ('feddyn', {'server_optimizer': 'remembers'}, 'gives the next adapter itself'),
  ('flora', {'server_optimizer': 'remembers'}, 'gives the next adapter itself'),
  ('fed_medlora', {'aggregator': 'boasting'}, "gives 'best', which is unknown; allowed are"),
  # And what is sound.
  ('feddyn', {'server_optimizer': 'adds', 'aggregator': 'plain_mean'}, None),
  ('scaffold', {'sharing': 'everything', 'aggregator': 'plain_mean'}, None),
  ('flora', {'sharing': 'everything', 'server_optimizer': 'adds'}, None),
  ('fed_medlora_plus', {'sharing': 'all_but_q'}, None),
  ('fed_medlora_plus', {'sharing': 'alone'}, None),
  ('fedprox', {'sharing': 'a_sent'}, None),
])
def test_own_parts_are_refused_by_what_they_do(preset, changes, message, tmp_path):
  """As the package's own are, whatever their names: files that say nothing about themselves."""
  mine = tmp_path / 'mine.py'
  mine.write_text(MINE)
  config = get_config(preset)
  for key, value in changes.items():
    config.fed[key] = value if value is True else f'{mine}:{value}'
  if message is None:
    validate(config)
    return
  with pytest.raises(InputError) as error:
    validate(config)
  assert message in str(error.value) and '\n' not in str(error.value)


def test_an_own_aggregator_that_asks_for_a_loss_wants_whole_pairs():
  """Whatever the configuration's loss_power: only A is sent, and the server's B stays at zero."""
  update, _ = BROKEN['asks']
  part = own_parts.from_python('fed.aggregator', Aggregator(lambda adapter: jnp.zeros(3), update))
  parts = methods.method(values(), {'fed.aggregator': part})
  share = sharing.only_a(['layers/q/a', 'layers/q/b'])
  with pytest.raises(InputError, match='config.fed.sharing: a factor stays at its site'):
    contracts.check_own_parts({'fed.aggregator': part}, parts, share, ADAPTER, 3, 3, True)

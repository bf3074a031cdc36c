"""Random methods, ranks, cohorts and absences against `oracle.py`, which knows only formulas.

FEDMEDJAX_ORACLE=N tries N draws in place of 25; a draw is a function of its number.
"""

import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from fedmedjax.fed import local, rules, server, sharing
from fedmedjax.fed.aggregators import AGGREGATORS
from fedmedjax.fed.builders import build
from fedmedjax.fed.ranks import mixed_ranks, same_ranks
from fedmedjax.fed.round import federated_algorithm
from fedmedjax.fed.types import LocalData, Validation

DRAWS = int(os.environ.get('FEDMEDJAX_ORACLE', 25))
ROUNDS, SITES, STEPS, ROWS, IN, OUT, RANK = 3, 4, 3, 4, 5, 4, 3
# Of draws of which the first 25 reach every part, and none of these diverges.
SEED = 9133
STEPS_OF = ((0, 1), (2,), (3,), (4,), (5,))
PRODUCTS = ('padded_mean', 'refactorised', 'stacked', 'residual', 'corrected')
# Each tried by itself, see `drawn`.
NEWER = ('aligned', 'orthogonalised', 'normalised', 'q_fedavg', 'agnostic')
ROBUST = ('median', 'trimmed_mean', 'geometric_median', 'krum', 'clipped_mean')
# By the oracle's words: (name, factor, rounds that happened) -> bool, and (name, factor) -> bool.
TRAINED = {'only_b': lambda name, factor, number: factor == 'b',
           'served_a': lambda name, factor, number: factor == 'b',
           'alternating': lambda name, factor, number: factor == 'ba'[number % 2]}
SHARED = {'only_a': lambda name, factor: factor == 'a', 'nothing': lambda name, factor: False}


def drawn(number: int, newer: str = '') -> SimpleNamespace:
  """A sound method with all its numbers, and who comes in each round; its aggregator is `newer`,
  or one that is drawn."""
  rng = np.random.default_rng((SEED, number, NEWER.index(newer)) if newer else (SEED, number))
  pick = lambda *values: values[rng.integers(len(values))]  # noqa: E731
  case = SimpleNamespace(
    alpha=4.0, rank=RANK, sites=SITES, strength=pick(0.5, 1.0), rate=0.02, warmup=pick(0.05, 0.5),
    clip=0.5, eps=1e-3, decay=pick(0.0, 0.1), size_power=pick(0.0, 0.5, 1.0), loss_power=0.0,
    temperature=pick(0.5, 1.0), floor=pick(0.0, 0.2), ema=0.0, signal='loss', fair=0.1, trim=0.34,
    faulty=0, kept=pick(1, 2), norm_limit=pick(0.7, 1.0), residual_rank=pick(0, 2), momentum=0.5,
    b2=0.9, tau=0.1, server='fedavg', server_rate=1.0, optimizer=pick('sgd', 'adamw'),
    rule=pick('plain', 'fedprox', 'scaffold', 'feddyn'), sharing='everything',
    ranks=(RANK,) * SITES, alignment=pick(0.5, 1.0) if newer else 1.0, fairness=1.5, lipschitz=0.3,
    mixture_rate=0.02)
  families = ('mean',) if case.rule in ('scaffold', 'feddyn') else ('mean', PRODUCTS, ROBUST)
  family = pick(*families)
  case.aggregator = family if family == 'mean' else pick(*family)
  if case.rule in ('scaffold', 'feddyn'):
    case.optimizer, case.size_power, case.floor = 'sgd', 0.0, 0.0
    case.sharing = pick('everything', 'only_b', 'only_a')
  elif case.aggregator == 'mean':
    case.sharing = pick('everything', 'only_b', 'only_a', 'alternating', 'nothing')
    if case.sharing == 'nothing':
      case.rule = 'plain'
    if case.sharing not in ('only_a', 'nothing') and rng.random() < 0.9:
      case.loss_power, case.signal = 1.0, pick(
        'loss', 'answer', 'peer', 'loo', 'grad')
    case.ema = pick(0.0, 0.6) if case.size_power or case.loss_power else 0.0
  elif case.aggregator in PRODUCTS:
    case.loss_power, case.signal = pick(0.0, 1.0), pick(
      'loss', 'answer', 'peer', 'loo', 'product_norm')
  if newer:
    case.rule = pick('plain', 'fedprox')
    case.aggregator, case.sharing = newer, {
      'aligned': 'everything', 'orthogonalised': 'served_a'}.get(
        newer, pick('everything', 'only_b'))
    case.ema, case.loss_power, case.signal = 0.0, 0.0, 'loss'
    if newer in ('aligned', 'orthogonalised'):
      case.loss_power, case.signal = pick(0.0, 1.0), pick('loss', 'answer')
  if case.aggregator in (*ROBUST, *NEWER[2:]):
    case.floor = 0.0
  one_rank = (*ROBUST, 'aligned')
  if case.rule not in ('scaffold', 'feddyn') and case.aggregator not in one_rank and (
      rng.random() < 0.6):
    case.ranks = pick((1, 1, 3, 3), (1, 2, 3, 2), (2, 2, 2, 2), (3, 1, 1, 1))
  whole = (*PRODUCTS, 'orthogonalised')
  if case.aggregator not in whole and case.rule != 'feddyn' and case.sharing != 'nothing':
    case.server = pick('fedavg', *server.SERVER_OPTIMIZERS)
    case.server_rate = 1.0 if case.server == 'fedavg' else 0.1
  case.trained = TRAINED.get(case.sharing, lambda name, factor, number: True)
  case.shared = SHARED.get(case.sharing, lambda name, factor: True)
  case.cohorts, case.sizes, case.broken, case.counts = [], [], [], []
  for _ in range(ROUNDS):
    case.cohorts.append(np.sort(rng.permutation(SITES)[:3]))
    case.sizes.append(1.0 * rng.integers(1, 9, 3) * (rng.random(3) < 0.8) * (rng.random() < 0.9))
    case.broken.append(rng.random(3) < 0.15)
    case.counts.append(rng.integers(1, STEPS + 1, 3))
  normal = lambda *shape: rng.normal(size=shape)  # noqa: E731
  batches = lambda *front: {  # noqa: E731
    'q': normal(*front, ROWS, IN), 'y': normal(*front, ROWS, OUT),
    'weight': rng.integers(0, 4, (*front, ROWS)) + 0.5}
  case.batches = [batches(3, STEPS) for _ in range(ROUNDS)]
  # Six steps of five groups, the third site's of two tasks; in some cases a site has none.
  case.val = batches(6)
  case.validation = [[taken(case.val, step) for step in steps] for steps in STEPS_OF]
  case.answers = [rng.integers(1, 5, len(steps)).tolist() for steps in STEPS_OF]
  case.owners = pick((0, 1, 2, 2, 3), (0, 1, 2, 2, -1), (0, 0, 1, 1, 3), (-1,) * 5)
  case.start = {name: (normal(IN, RANK), 0.2 * normal(RANK, OUT)) for name in oracle.NAMES}
  return case


def taken(batches, *place):
  return {key: x[place] for key, x in batches.items()}


def loss(adapter, base, batch):
  """As the oracle's `sums`."""
  del base
  error = -batch['y']
  for name in oracle.NAMES:
    pair = adapter[name]
    error = error + 4.0 / RANK * batch[name] @ pair['a'] @ pair['b']
  return jnp.sum(batch['weight'] * jnp.sum(error**2, axis=1)), batch['weight'].sum()


def ours(case):
  """The package's algorithm, put together from the builders of its tables."""
  values = dict(
    vars(case), secure_aggregation=False, cohort_size=3, rounds=ROUNDS, fair_penalty=case.fair,
    learning_rate=case.server_rate)
  optimizer = local.sgd(case.rate) if case.optimizer == 'sgd' else local.adamw(
    case.rate, eps=case.eps, weight_decay=case.decay, clip_norm=case.clip,
    warmup_share=case.warmup)
  values['local_rate'] = optimizer.rate
  paths = [f'{name}/{factor}' for name in oracle.NAMES for factor in 'ab']
  return federated_algorithm(
    loss, SITES, optimizer=optimizer, rule=build(rules.RULES[case.rule], values),
    sharing=build(sharing.SHARINGS[case.sharing], {'paths': paths}),
    ranks=same_ranks() if set(case.ranks) == {RANK} else mixed_ranks(case.ranks, RANK),
    aggregator=build(AGGREGATORS[case.aggregator], values),
    server_optimizer=build(server.SERVER_OPTIMIZERS[case.server], values))


def close(found, expected, what):
  distance = np.linalg.norm(np.asarray(found, np.float64) - expected)
  assert distance <= 1e-5 * max(1.0, np.linalg.norm(expected)), (what, distance)


def compare(case, state, metrics, theirs, weights, utility, what):
  """The server, what is folded, the sites' own factors, control variates and weights, to 1e-5."""
  close(metrics.weights, weights, f'{what}: weights')
  if utility is not None and case.temperature:
    usable = np.isfinite(utility) & (weights > 0)
    close(np.asarray(metrics.validation_loss)[usable], utility[usable], f'{what}: utility')
  for i, name in enumerate(oracle.NAMES):
    a, b = theirs.server[name]
    pair = state.adapter[name]
    if case.aggregator in ('refactorised', 'orthogonalised'):  # factors up to signs
      close(pair['a'] @ pair['b'], a @ b, f'{what}: product')
    else:
      close(pair['a'], a, f'{what}: {name} A')
      close(pair['b'], b, f'{what}: {name} B')
    folded = state.folded[name]['a'] @ state.folded[name]['b'] if state.folded != () else (
      np.zeros_like(theirs.folded[name]))
    close(case.alpha / RANK * folded, theirs.folded[name], f'{what}: folded')
    for j, factor in enumerate('ab'):
      for site in range(SITES):
        if not case.shared(name, factor):
          close(state.sites.adapter[name][factor][site], theirs.own[site][name][j],
                f'{what}: own {name} {factor} of {site}')
        elif case.rule in ('scaffold', 'feddyn'):
          close(state.sites.ctrl[name][factor][site], theirs.ctrl[site][name][j],
                f'{what}: control variate {name} {factor} of {site}')
      if case.rule in ('scaffold', 'feddyn') and case.shared(name, factor):
        close(state.ctrl[name][factor], theirs.server_ctrl[name][j], f'{what}: control variate {i}')


@pytest.mark.parametrize('number', range(DRAWS))
def test_a_round_is_what_the_formulas_say(number):
  """In float64, since weights by leave-one-out are exponentials of differences of like losses."""
  with jax.enable_x64(True):
    _tried(drawn(number))


@pytest.mark.parametrize('newer', NEWER)
def test_and_with_aggregators_that_came_later(newer):
  with jax.enable_x64(True):
    for number in range(max(1, DRAWS // 25)):
      _tried(drawn(number, newer))


def _tried(case):
  what = f'{case.rule}, {case.sharing}, {case.aggregator}, {case.signal} {case.loss_power}, ' + (
    f'{case.server}, {case.optimizer}, ranks {case.ranks}')
  algorithm = ours(case)
  with jax.disable_jit():  # a program for every method costs more than its few operations
    state = algorithm.init({name: {'a': a, 'b': b} for name, (a, b) in case.start.items()})
  theirs = oracle.begin(case, case.start)
  val = Validation(
    case.val, np.array([[1.0 * (step in steps) for steps in STEPS_OF] for step in range(6)]),
    np.concatenate(case.answers).astype(float), np.array(case.owners, np.int32))
  for turn in range(ROUNDS):
    batches, steps = case.batches[turn], case.counts[turn]
    broken = case.broken[turn][:, None, None, None]
    batches = batches | {'y': np.where(broken, np.nan, batches['y'])}
    data = LocalData(
      batches, np.arange(STEPS)[None] < steps[:, None], case.sizes[turn])
    state, metrics = algorithm.round(
      state, None, data, case.cohorts[turn].astype(np.int32), val,
      jax.random.key(turn))
    case.fresh = {name: np.asarray(state.adapter[name]['a']) for name in oracle.NAMES}
    weights, utility = oracle.play(
      case, theirs, case.cohorts[turn], case.sizes[turn],
      [[taken(batches, place, k) for k in range(count)] for place, count in enumerate(steps)])
    compare(case, jax.device_get(state), metrics, theirs, weights, utility, f'round {turn}: {what}')


def test_the_draws_reach_every_part():
  """What CI tries: every rule, sharing, signal, kind of aggregator and server, ranks, absences."""
  cases = [drawn(number) for number in range(25)]
  seen = lambda key: {getattr(case, key) for case in cases}  # noqa: E731
  assert seen('rule') == set(rules.RULES)
  assert seen('sharing') == set(sharing.SHARINGS) - {'served_a', 'cores'}
  assert {case.signal for case in cases if case.loss_power} >= {
    'loss', 'answer', 'peer', 'loo', 'grad'}
  assert len(seen('owners')) == 4 and len(seen('ranks')) >= 4
  assert len(seen('aggregator')) >= 9 and len(seen('server')) >= 5
  assert any((sizes == 0).any() for case in cases for sizes in case.sizes)
  assert any(broken.any() for case in cases for broken in case.broken)

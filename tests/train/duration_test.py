"""How long a run is said to take: products counted by hand, and a clock that is ours."""

from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedmedjax.data.layout import ShapeBucket
from fedmedjax.eval.decoding_calls import batch_passes
from fedmedjax.experiment.execution import Execution
from fedmedjax.fed.sharing import everything, only_b
from fedmedjax.fed.types import LocalData
from fedmedjax.train import duration, flop
from fedmedjax.types import Program

F32 = np.dtype('float32')


def test_products_by_hand():
  """[2, 3] x [3, 5] are 2 * 2 * 3 * 5 = 60 FLOP: 4 times in a scan, twice in a loop of unknown
  length, once behind a function that is compiled alone; a batch of 7 is 420; of two branches the
  dearer one counts."""
  a, b = jnp.ones((2, 3)), jnp.ones((3, 5))

  def program(a, b, count):
    scanned, _ = jax.lax.scan(lambda sums, _: (sums + a @ b, None), jnp.zeros((2, 5)), length=4)
    looped = jax.lax.fori_loop(0, count, lambda _, sums: sums + a @ b, scanned)
    batch = jnp.einsum('sij,jk->sik', jnp.stack([a] * 7), b) + jnp.einsum(
      'sij,sjk->sik', jnp.stack([a] * 7), jnp.stack([b] * 7))
    either = jax.lax.cond(count > 1, lambda: a @ b @ jnp.ones((5, 5)), lambda: a @ b)
    return looped + batch.sum(axis=0) + jax.jit(jnp.matmul)(a, b) + either

  found = flop.products(jax.make_jaxpr(program)(a, b, 3), trips=2)
  assert found == {
    # Products that share the right matrix are one of 14 rows.
    flop.Product(2, 3, 5, F32): 4 * 60 + 2 * 60 + 420 + 60 + 60,
    flop.Product(14, 3, 5, F32): 420, flop.Product(2, 5, 5, F32): 100}
  # Two products forward, and one each backward; made again for the gradient, two more.
  plain, again = (
    flop.products(jax.make_jaxpr(jax.grad(
      lambda a, keep=keep: keep(lambda a: jnp.sin(jnp.sin(a @ b) @ b.T))(a).sum()))(a)).total()
    for keep in (lambda fn: fn, jax.checkpoint))
  assert plain == 4 * 60 and again == 6 * 60


def test_products_of_parts_on_several_devices():
  """[8, 3] x [3, 5] split over 4 devices by rows: four times [2, 3] x [3, 5]."""
  split = jax.shard_map(
    lambda a: a @ jnp.ones((3, 5)), mesh=jax.make_mesh(
      (4,), ('site',), axis_types=(jax.sharding.AxisType.Auto,)),
    in_specs=jax.sharding.PartitionSpec('site'), out_specs=jax.sharding.PartitionSpec('site'))
  assert flop.products(jax.make_jaxpr(split)(jnp.ones((8, 3)))) == {
    flop.Product(2, 3, 5, F32): 4 * 60}


def test_the_rate_by_a_clock_of_ours(monkeypatch):
  """Each look at the clock is 0.1 s later: a call of so many products took 0.1 s."""
  now = iter(np.arange(0, 100, 0.1))
  monkeypatch.setattr(flop.time, 'perf_counter', lambda: next(now))
  product = flop.Product(8, 1024, 4096, F32)
  # 64 MiB are 2 pairs of matrices of 16 MiB.
  assert flop.product_rate(product) == pytest.approx(4 * product.flop / 0.1)
  assert flop.product_rate(product) == pytest.approx(4 * product.flop / 0.1)  # not timed again
  assert next(now) < 2


def test_passes_of_a_batch_by_hand(monkeypatch):
  """Four rows on a CPU may become two and one. Six answers of 3 passes: four questions
  are read in a row of 64 tokens and take 3 passes, and then two. Of 1 and 5 passes in two rows one
  is left after 1, which takes 4 more alone. Of 60 tokens none is read with another: the third
  waits for a row, which is free after 1 pass. On an accelerator rows stay: 5 passes of all four."""
  assert batch_passes([10] * 6, [3] * 6, 4) == {(1, 64): 2, (4, 0): 3, (2, 0): 3}
  assert batch_passes([40, 10], [1, 5], 4) == {(1, 64): 1, (2, 0): 1, (1, 0): 4}
  assert batch_passes([60] * 3, [1, 5, 2], 2) == {(1, 64): 3, (2, 0): 3, (1, 0): 2}
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert batch_passes([10, 10], [1, 5], 4) == {(1, 64): 1, (4, 0): 5}


def study(sharing, **options):
  """Steps [3, 4] x [4, 5], or of the first row alone where the others are 0; three sites."""
  def loss(remat):
    return lambda adapter, base, batch: (jnp.sin(batch @ adapter['b']).sum(), 1.0)

  @jax.jit
  def one_round(state, base, data, cohort, val, key):
    steps = jax.lax.fori_loop(0, data.step_mask.sum(), lambda _, x: x @ x, jnp.ones((9, 9)))
    return steps.sum() + jnp.ones((1, 2)) @ jnp.ones((2, 3))

  def answer_calls(adapter, site):
    call = jax.jit(lambda adapter, x: x @ adapter['b'])
    return [(Program(call, (adapter, jnp.ones((10, 4))), 0, 0), 1 + 'abc'.index(site.name))]

  sites = [SimpleNamespace(name=name, test=(), tasks=()) for name in 'abc']
  adapter = {'b': jnp.ones((4, 5)), 'a': jnp.ones(4)}
  return SimpleNamespace(
    step_loss=loss, sharing=sharing, algorithm_with=lambda execution: SimpleNamespace(
      round=one_round),
    trainable=SimpleNamespace(
      adapter=adapter, base={}, untrained=adapter, answer_calls=answer_calls),
    schedule=SimpleNamespace(units=None, layout=SimpleNamespace(
      blank=np.zeros((3, 4), np.float32), shape_buckets=(
        ShapeBucket(lambda x: x[:1], lambda x: not x[1:].any()),))),
    communication=SimpleNamespace(sampler=SimpleNamespace(size=3)),
    site_map=lambda chunk: SimpleNamespace(laid_out=lambda steps: steps.sum() + (chunk == 0)),
    data=SimpleNamespace(tested=sites[:2], external=sites[2:], sites=sites), watched=sites[:1],
    options=SimpleNamespace(**{
      'rounds': 4, 'every': 0, 'zero_shot': False, 'max_zero_shot': 0, 'cross_site': False,
      'pooled': False} | options))


def expected(monkeypatch, study, chunk=1, done=0):
  monkeypatch.setattr(
    duration.communication, 'round_participation',
    lambda communication, schedule, number: SimpleNamespace(
      steps=np.array([[2, 2, 0], [1, 0, 0], [0, 0, 0], [2, 2, 2]][number])))
  batches = np.zeros((3, 2, 3, 4), np.float32)
  batches[:, :, 0], batches[1, 1, 2] = 1, 1
  data = LocalData(batches, np.array([[1, 1], [1, 1], [0, 0]], bool), None)
  plan = SimpleNamespace(execution=Execution(chunk, 'none'))
  return duration.expected(study, plan, (None, {}, data, None, None, None), done, lambda p: 120.0)


def test_rounds_by_hand(monkeypatch):
  """A whole step is 2 * 120 FLOP, forward and for the gradient; in the small shape 80. Of the four
  steps of round 0 one needs the whole: 120 on average. A round has 12 more beside its steps, and
  none where nobody trains. At 120 FLOP/s, of which training takes its share."""
  found = expected(monkeypatch, study(everything()))
  seconds = np.array([4 * 120 + 12, 120 + 12, 0, 6 * 120 + 12]) / 120 / duration.TRAINING_SHARE
  np.testing.assert_allclose(found.rounds, seconds)
  assert found.flop == np.mean([492, 132, 0, 732]) and found.rate == 120
  # Together they have one shape, and one step is computed for padding.
  found = expected(monkeypatch, study(everything()), chunk=0)
  np.testing.assert_allclose(
    found.rounds[0], (5 * 240 + 12) / 120 / duration.TRAINING_SHARE)
  assert len(expected(monkeypatch, study(everything()), done=3).rounds) == 1
  assert expected(monkeypatch, study(everything()), done=4).rounds == ()


@pytest.mark.parametrize('options, calls', [
  ({}, 1 + 2 + 3), ({'zero_shot': True}, 2 * 6), ({'every': 2}, 6 + 2), ({'cross_site': True}, 6)])
def test_answers_by_hand(options, calls, monkeypatch):
  """Calls of [10, 4] x [4, 5], 400 FLOP: one for a, two for b and three for the external c; a is
  watched twice in four rounds."""
  found = expected(monkeypatch, study(everything(), **options))
  assert found.decoding == pytest.approx(calls * 400 / 120 / duration.DECODING_SHARE)


def test_answers_of_adapters_of_their_own(monkeypatch):
  """Sites a, b, c have one each, and c is external to none of them; the average answers, too.
  Across sites all three answer everywhere."""
  private = only_b(['a/b'])._replace(shared=lambda path: path == 'a')
  for options, calls in (({}, 2 * 6), ({'cross_site': True}, 3 * 6 + 6)):
    found = expected(monkeypatch, study(private, **options))
    assert found.decoding == pytest.approx(calls * 400 / 120 / duration.DECODING_SHARE)
  assert Counter(site.name for site, *_ in duration._asked(study(private), 0)) == {
    'a': 2, 'b': 2, 'c': 2}


def test_what_is_said():
  found = duration.Duration(
    (90.0, 110.0), 30.0, 1.5e13, flop.Product(416, 576, 1536, F32), 142e9)
  assert str(found) == (
    'time: about 1:40 min a round, 3:20 min of rounds, 30 s of decoding: 3:50 min in all '
    'without compiling (1.5e+13 FLOP a round; products [416, 576] x [576, 1536] of float32 run at '
    '142 GFLOP/s here now)')

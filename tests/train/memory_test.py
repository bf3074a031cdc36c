"""Plans of memory: the execution that is taken, what it is said to need, and where none fits."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted_steps import PEAK, works
from rich.console import Console

from fedmedjax.data.private_steps import Units
from fedmedjax.experiment.execution import Execution, executions, smaller
from fedmedjax.experiment.reading import Reading
from fedmedjax.fed.local import sgd
from fedmedjax.fed.types import LocalData
from fedmedjax.runtime import device
from fedmedjax.runtime.processes import ALONE
from fedmedjax.runtime.progress import Reporter
from fedmedjax.train import loop, memory, roofline
from fedmedjax.types import InputError, Program

SITES, WIDTH = 4, 50_000
QUIET = Reporter(Console(quiet=True))


def test_what_is_left_open_is_tried_from_fast_to_small():
  """Five sites: all, 3, 2, 1; on a CPU one after the other at once."""
  levels = ('none', 'products', 'narrow_products', 'full')
  order = [(chunk, remat) for chunk in (0, 3, 2, 1) for remat in levels]
  assert executions(-1, 'auto', 5, False) == tuple(order)
  # Keeping all is slower than making it again.
  assert executions(-1, 'auto', 5, True) == tuple(order[-3:])
  assert executions(-1, 'products', 5, False) == tuple(order[1::4])
  assert executions(4, 'auto', 5, False) == tuple((4, remat) for remat in levels)
  assert executions(0, 'none', 5, True) == ((0, 'none'),)
  assert executions(-1, 'none', 1, False) == ((0, 'none'),)
  # Four groups of devices share a chunk evenly.
  assert [one.chunk for one in executions(-1, 'full', 18, False, 4)] == [0, 12, 8, 4]
  assert executions(-1, 'full', 18, True, 4) == ((4, 'full'),)


def test_what_follows_an_arrangement_that_found_no_memory():
  found, one = [], Execution(0, 'none')
  while one := smaller(one, 5):
    found.append(one)
  assert found == [
    (3, 'none'), (2, 'none'), (1, 'none'), (1, 'products'), (1, 'narrow_products'), (1, 'full')]
  assert smaller(Execution(9, 'full'), 2) == (1, 'full')
  assert smaller(Execution(0, 'none'), 6, 4) == (4, 'none')
  assert smaller(Execution(4, 'none'), 6, 4) == (4, 'products')


def test_a_run_goes_on_with_the_arrangement_that_it_had():
  order = executions(-1, 'auto', 2, False)
  lines = [{'chunk': 0, 'remat': 'full'}, {'chunk': 1, 'remat': 'none'}, {'skipped': True}]
  assert memory._remaining(order, lines) == order[4:]
  assert memory._remaining(order, ()) == order
  # Told otherwise since then.
  assert memory._remaining(order[:1], lines) == order[:1]


@pytest.mark.parametrize('group, files, limits', [
  ('0::/a/b', {'a/b/memory.max': '700', 'a/memory.max': '500', 'memory.max': 'max'}, [700, 500]),
  # A container sees its own group as the root.
  ('0::/lxc/x', {'memory.max': '900'}, [900]),
  ('3:cpu:/a\n7:memory,hugetlb:/a', {'memory/a/memory.limit_in_bytes': '800',
                                     'cpu/a/memory.limit_in_bytes': '1'}, [800]),
  ('0::/', {}, []),
])
def test_limits_of_containers(group, files, limits, tmp_path):
  placed = {f'sys/fs/cgroup/{name}': text for name, text in files.items()}
  for name, text in {'proc/self/cgroup': group, **placed}.items():
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + '\n')
  assert device.container_limits(tmp_path) == limits
  assert device.container_limits(tmp_path / 'none') == []


def study(monkeypatch, *, order=None, limit=0, held=10_000):
  """A study whose round holds `at once * copies` arrays of WIDTH floats at the same time.

  copies: 16 for 'none', 8 for 'products', 4 for 'narrow_products', 2 for 'full'. For its gradient
  the loss keeps a few percent of that. Returns it, the arguments of its round and the list of
  executions that get compiled.
  """
  monkeypatch.setattr(device, 'held', lambda: held + tree_bytes)
  monkeypatch.setattr(device, 'peak', lambda: held + tree_bytes)
  monkeypatch.setattr(memory, '_decoding', lambda *rest: 0)
  copies = {'none': 16, 'products': 8, 'narrow_products': 4, 'full': 2}
  compiled = []

  def algorithm_with(execution):
    compiled.append(execution)
    count = copies[execution.remat] * (execution.chunk or SITES)

    # Products need the whole of what they read: nothing of it is fused away.
    def one_round(state, base, data, cohort, val, key):
      wide = jnp.outer(jnp.arange(1.0, count + 1), base)
      mixed = jnp.sort(wide, axis=1)
      return state + 1, (mixed @ base, jnp.zeros(1000))

    return SimpleNamespace(round=jax.jit(one_round, donate_argnums=0))

  def loss(remat):
    def total(adapter, base, batch):
      scales = jnp.arange(1.0, copies[remat] + 1)[:, None]
      kept = jnp.sin(adapter * scales * base[None, :WIDTH // 20])
      return kept.sum(), jnp.float32(1)
    return total

  base, adapter = jnp.ones(WIDTH), jnp.ones(())
  state = jnp.zeros(500)
  data = LocalData(np.zeros((SITES, 2, 3), np.float32), np.ones((SITES, 2), bool),
                   np.ones(SITES, np.float32))
  inputs = (state, base, data, np.arange(SITES), None, jax.random.key(0))
  tree_bytes = state.nbytes + base.nbytes
  return SimpleNamespace(
    options=SimpleNamespace(memory=limit), spread=None, processes=ALONE,
    data=SimpleNamespace(reading=Reading()), executions=order or executions(
      -1, 'auto', SITES, False),
    communication=SimpleNamespace(sampler=SimpleNamespace(size=SITES)),
    algorithm_with=algorithm_with, trainable=SimpleNamespace(
      adapter=adapter, loss_fn=loss, share=None),
    optimizer=sgd(1.0), validation=None,
    schedule=SimpleNamespace(units=None, batch_size=6, layout=SimpleNamespace(
      groups=1, together=1, blank=np.zeros(3, np.float32))),
    groups=1, with_micro_batch=None), inputs, compiled


def test_what_a_round_needs_by_hand(monkeypatch):
  """State 500 and base 50,000 float32; examples 4·2·3 float32, 4·2 bool, 4 float32, 4 int64 as they
  lie on the host, and a key; it returns 1,000 float32 and a product of `count` beside the state."""
  given, inputs, _ = study(monkeypatch, order=(Execution(1, 'full'),))
  plan = memory.plan(given, inputs, QUIET)
  assert plan.training['base model'] == 4 * WIDTH
  assert plan.training['state of server and sites'] == 4 * 500
  assert plan.training['examples of the round and of validation'] == 96 + 8 + 16 + 32 + 8
  assert 4000 + 8 <= plan.training['what it returns beside the state'] < 4000 + 200
  assert plan.training['all else that is held (libraries, notes)'] == 10_000
  room = plan.training["the round's own room (gradients, moments, activations)"]
  assert 2 * 4 * WIDTH <= room < 6 * 4 * WIDTH
  assert plan.peak == sum(plan.training.values())
  # It is the program that runs.
  assert float(plan.compiled(*inputs)[0][0]) == 1.0


def test_temporaries_are_those_alive_where_that_is_counted():
  """100 bytes of arguments and 30 of results, 10 of which take an argument's place; 1,000 bytes of
  temporaries. A peak of 920 has 800 of them alive. One of 160 leaves them out; 0 is no count."""
  def counted(**peak):
    return SimpleNamespace(
      argument_size_in_bytes=100, output_size_in_bytes=30, alias_size_in_bytes=10,
      temp_size_in_bytes=1000, **peak)

  assert memory.temporaries(counted(peak_memory_in_bytes=920)) == 800
  for peak in (160, 0, 1120, 2000):
    assert memory.temporaries(counted(peak_memory_in_bytes=peak)) == 1000
  assert memory.temporaries(counted()) == 1000


def test_the_fastest_that_fits_is_taken_and_little_else_compiled(monkeypatch):
  """Rounds of 64, 32, 16, 8 (all sites), 32 to 4 (two), 16 to 2 arrays (one), as the budget shrinks
  to 1.5 times each. How much more than guessed the first one needs is expected of the others."""
  given, inputs, compiled = study(monkeypatch)
  order, needs = given.executions, {}
  for one in order:
    given.executions = (one,)
    needs[one] = sum(memory.plan(given, inputs, QUIET).training.values())
  given.executions = order
  assert needs[order[0]] > 1.5 * needs[order[1]] > 2 * needs[order[2]]
  for place in (0, 1, 2, 3, 7, 11):
    compiled.clear()
    given.options.memory = int(1.5 * needs[order[place]] / memory.SHARE)
    plan = memory.plan(given, inputs, QUIET)
    assert plan.execution == order[place] == compiled[-1]
    assert len(compiled) == 1 + (place > 0)


@pytest.mark.parametrize('weights, taken, after', [
  # Half the sites cost no more products, and little else.
  (1.0, (2, 'products'), (1, 'products')),
  # But the whole base once more: a second pass over it takes longer than gate and up again.
  (30.0, (0, 'narrow_products'), (0, 'full'))])
def test_on_an_accelerator_time_and_memory_decide(weights, taken, after, monkeypatch):
  """See `planted_steps.works`. A budget of 24 arrays holds all sites with 'narrow_products' (16),
  two with 'products' (16) or one with 'none' (16). Where memory runs out all the same it is the
  fastest of those with less; without a limit all is kept of all sites."""
  given, inputs, compiled = study(monkeypatch)
  monkeypatch.setattr(memory, '_peak', lambda: PEAK)
  monkeypatch.setattr(roofline, 'step_work', lambda *rest: works(weights).__getitem__)
  given.options.memory = 10**10
  most = memory.plan(given, inputs, QUIET)
  assert most.execution == (0, 'none') and len(compiled) == 1
  given.options.memory = int(sum(most.training.values()) * 24 / 64 / memory.SHARE)
  plan = memory.plan(given, inputs, QUIET)
  assert plan.execution == taken
  assert memory.reduced(given, plan, inputs, QUIET).execution == after
  with pytest.raises(RuntimeError, match='nothing smaller is left'):
    memory.reduced(given, plan._replace(execution=Execution(1, 'full')), inputs, QUIET)
  # A run that goes on begins with what its last round had.
  line = {'chunk': 1, 'remat': 'products'}
  assert memory.plan(given, inputs, QUIET, [line]).execution == (1, 'products')


def test_when_nothing_fits_the_numbers_are_told(monkeypatch):
  given, inputs, compiled = study(monkeypatch, limit=100_000)
  with pytest.raises(InputError) as error:
    memory.plan(given, inputs, QUIET)
  told = str(error.value)
  assert told.startswith('config.fed.batch_size=6: a round needs 0.00 GiB with 1 site at once')
  assert '90% may be used' in told and 'config.fed.memory_gib' in told
  # The smallest only, and that for its number.
  assert compiled == [(1, 'full')] and 'config.fed.chunk' not in told
  given, inputs, _ = study(monkeypatch, order=(Execution(2, 'none'),), limit=100_000)
  with pytest.raises(InputError, match="set config.fed.chunk=-1 and config.model.remat='auto'"):
    memory.plan(given, inputs, QUIET)


def test_a_run_with_units_of_privacy_is_offered_no_groups(monkeypatch):
  """Another micro-batch, which is refused beside such units, is not even asked for."""
  given, inputs, _ = study(monkeypatch)
  given.schedule.units = Units('example')
  assert memory.fitting_micro_batch(given, inputs, QUIET, 1) is None


def test_groups_are_offered_before_a_run_is_refused(monkeypatch):
  """A step of 6 examples holds 12 arrays; of groups of 3, 2 and 1 it holds 6, 4 and 2. The largest
  that fits is named, by the compiler's numbers; nothing is where not even single examples fit."""
  tried = []

  def of(size):
    given, inputs, _ = study(monkeypatch, order=(Execution(size, 'full'),))
    tried.append(size)
    given.with_micro_batch = of_group
    return given, inputs

  def of_group(size):
    given, _ = of(size)
    given.schedule.layout.groups = -(-6 // size)
    given.schedule.layout.blank = np.zeros((-(-6 // size), 3), np.float32)
    return given

  whole, inputs = of(6)
  needed = {}
  for size in (6, 3, 2, 1):
    given, _ = of(size)
    needed[size] = sum(memory.plan(given, inputs, QUIET).training.values())
  assert needed[6] > needed[3] > needed[2] > needed[1]
  for fits, sizes in ((3, [3]), (2, [3, 2]), (1, [3, 2, 1])):
    tried.clear()
    whole.options.memory = int((needed[fits] + 1000) / memory.SHARE) + 1
    with pytest.raises(InputError) as error:
      memory.plan(whole, inputs, QUIET)
    told = str(error.value)
    assert 'config.fed.batch_size=6: a round needs' in told and '\n' not in told
    assert f'it fits with fed.micro_batch={fits}; otherwise' in told and tried == sizes
  whole.options.memory = int(needed[1] / memory.SHARE) - 1000
  with pytest.raises(InputError) as error:
    memory.plan(whole, inputs, QUIET)
  assert 'micro_batch' not in str(error.value)
  # Twos already: what is left to try are single examples.
  pairs = of_group(2)
  pairs.options.memory = int((needed[1] + 1000) / memory.SHARE) + 1
  tried.clear()
  assert memory.fitting_micro_batch(
    pairs, memory._inputs_of(pairs, inputs), QUIET, pairs.options.memory) == 1 and tried == [1]


def test_a_compiler_without_memory_is_passed_over(monkeypatch):
  """As TPU compilers say it; any other failure is none of ours."""
  given, inputs, _ = study(monkeypatch, limit=10**9)
  first, algorithm_with = given.executions[0], given.algorithm_with

  def failing(message):
    def compile_():
      raise jax.errors.JaxRuntimeError(message)
    lowered = SimpleNamespace(compile=compile_)
    return lambda execution: algorithm_with(execution) if execution != first else (
      SimpleNamespace(round=SimpleNamespace(lower=lambda *inputs: lowered)))

  given.algorithm_with = failing('RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm')
  plan = memory.plan(given, inputs, QUIET)
  assert plan.execution == given.executions[1]
  assert memory.reduced(given, plan, inputs, QUIET).execution == (2, 'products')
  with pytest.raises(RuntimeError, match='nothing smaller is left'):
    memory.reduced(given, plan._replace(execution=Execution(1, 'full')), inputs, QUIET)
  given.algorithm_with = failing('INTERNAL: broken')
  with pytest.raises(jax.errors.JaxRuntimeError, match='broken'):
    memory.plan(given, inputs, QUIET)


def test_decoding_is_compiled_only_where_it_may_need_more(monkeypatch):
  """[500, 500] products beside 1,000,000 bytes that are held."""
  calls = []

  @jax.jit
  def answer(adapter, base, tokens):
    calls.append(1)
    return jnp.sort(jnp.outer(tokens, tokens), axis=0) @ tokens

  base, tokens = jnp.ones(10), jax.ShapeDtypeStruct((500,), jnp.float32)
  monkeypatch.setattr(device, 'held', lambda: 1_000_000)
  monkeypatch.setattr(memory, 'site_adapter', lambda state, sharing, site: state)
  given = SimpleNamespace(
    sharing=None, spread=None, watched=(),
    data=SimpleNamespace(tested=(), external=(), reading=Reading()),
    trainable=SimpleNamespace(
      largest_answer=lambda adapter, sites: Program(
        answer, (adapter, base, tokens), 2020, 100_000)))
  inputs = (jnp.zeros(5), base)
  assert memory._decoding(given, inputs, 2_000_000, 10**9) == 1_000_000 + 20 + 2000 + 100_000
  assert not calls
  needed = memory._decoding(given, inputs, 1_100_000, 10**9)
  assert calls and 1_000_000 + 2020 + 2000 + 10**6 <= needed < 4_200_000
  with pytest.raises(InputError, match='config.eval.batch_size: decoding needs'):
    memory._decoding(given, inputs, 1_100_000, 1_000_000)


def test_the_next_rounds_examples_are_packed_meanwhile(monkeypatch):
  """Only where the host has time, and each round's once, also when a round is begun again."""
  packed = []

  def pack(study, number, skipped):
    assert skipped == ()
    packed.append(number)
    return f'round {number}'

  monkeypatch.setattr(loop, 'packed_round', pack)
  given = SimpleNamespace(options=SimpleNamespace(rounds=3))
  with loop._packing(given) as get:
    assert [get(number, ()) for number in (0, 1)] == ['round 0', 'round 1']
  assert packed == [0, 1]
  monkeypatch.setattr(loop, '_overlaps', lambda: True)
  packed.clear()
  with loop._packing(given) as get:
    assert [get(number, ()) for number in (0, 1, 1, 2)] == [
      'round 0', 'round 1', 'round 1', 'round 2']
  assert sorted(packed) == [0, 1, 1, 2]


def test_what_says_that_memory_ran_out():
  assert memory.exhausted(RuntimeError('RESOURCE_EXHAUSTED: Out of memory.'))
  assert memory.exhausted(RuntimeError('INTERNAL: cublas: CUBLAS_STATUS_ALLOC_FAILED'))
  assert not memory.exhausted(RuntimeError('INTERNAL: CUBLAS_STATUS_EXECUTION_FAILED'))

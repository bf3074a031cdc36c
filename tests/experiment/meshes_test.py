"""A base split over devices and sites spread over them change roundings only, and are just that."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fedmedjax.experiment import meshes
from fedmedjax.fed import rules, sharing
from fedmedjax.fed.aggregators.weighted_mean import adaptive_mean
from fedmedjax.fed.gradient import mean_gradient
from fedmedjax.fed.local import adamw
from fedmedjax.fed.ranks import same_ranks
from fedmedjax.fed.round import federated_algorithm
from fedmedjax.fed.sites import map_sites, spread_state, spread_vmap
from fedmedjax.fed.types import LocalData
from fedmedjax.model import loss
from fedmedjax.model import sharding as model_sharding
from fedmedjax.model.batching import Question, decode, decoder
from fedmedjax.model.decode import cached_attention
from fedmedjax.model.files.convert import Placement, params_shape
from fedmedjax.model.llama import PROJECTIONS, Llama, LlamaConfig
from fedmedjax.model.lora import LoraConfig, init_adapter
from fedmedjax.model.loss import packed_attention, packed_loss
from fedmedjax.model.sharding import RULES, base_shardings, fetch_on, head_parts, specs, stream_on
from fedmedjax.model.speculation import END
from fedmedjax.types import Batch, InputError

# Four layers, since no other dimension is 4; all widths split in eight.
CONFIG = LlamaConfig(
  vocab_size=96, hidden_size=24, intermediate_size=40, num_layers=4, num_heads=4, num_kv_heads=2,
  head_dim=8, rms_norm_eps=1e-5, rope_theta=1e4, max_position_embeddings=128,
  tie_word_embeddings=False)
# Of a rank that is no width, nor are the columns of all sites (72, and 81), whole or split.
LORA = LoraConfig(9, 8.0, ('q_proj', 'o_proj', 'down_proj'))
SITES, STEPS, PREFIX, ROWS, WIDTH, TARGETS = 8, 2, 5, 3, 16, 18


def batches(seed: int, *lead: int) -> Batch:
  """Random tokens, one example a row."""
  rng = np.random.default_rng(seed)
  draw = lambda high, *shape: rng.integers(0, high, (*lead, *shape)).astype(np.int32)  # noqa: E731
  ones = partial(np.ones, dtype=np.int32)
  return Batch(
    prefix=draw(96, PREFIX), prefix_targets=ones((*lead, 0)),
    prefix_weight=np.ones((*lead, 0), np.float32), tokens=draw(96, ROWS, WIDTH),
    positions=PREFIX + np.arange(WIDTH, dtype=np.int32) * ones((*lead, ROWS, 1)),
    segments=ones((*lead, ROWS, WIDTH)), target_row=draw(ROWS, TARGETS),
    target_index=draw(WIDTH, TARGETS), targets=draw(96, TARGETS),
    target_weight=np.ones((*lead, TARGETS), np.float32))


DATA = LocalData(
  batches(0, SITES, STEPS), np.arange(STEPS) < np.array([2, 1, 2, 2, 2, 1, 2, 2])[:, None],
  np.arange(1, SITES + 1, dtype=np.float32))


@pytest.fixture(scope='module', autouse=True)
def blocks():
  """Words in three blocks, of the head and of the embedding."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loss, 'HEAD_BLOCK', 32)
    patch.setattr(model_sharding, '_ROWS_AT_ONCE', 32)
    yield


@pytest.fixture(scope='module')
def params():
  """Random weights, norms away from one and embeddings large enough for the softmax to matter."""
  ones = np.ones(4, np.int32)
  drawn = Llama(CONFIG, packed_attention).init(
    jax.random.key(3), ones, ones, None, (np.zeros(0, bool), np.ones((1, 4), np.int32)))['params']
  return jax.tree.map(lambda x: x * 12.0 if x.shape == (96, 24) else x * 1.1, dict(drawn))


def laid_out(spread, chunk):
  return {'map_sites': map_sites(chunk)} if spread is None else {
    'map_sites': map_sites(chunk, vmap=spread_vmap(spread)), 'place': spread_state(spread)}


def placed(mesh, params):
  return params if mesh is None else jax.device_put(params, base_shardings(mesh, CONFIG, params))


def wide(tree):
  return jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, tree)


def a_round(params, mesh, chunk, remat='full'):
  """(adapter and losses after a round of Fed-MedLoRA, its program, its base), in float64: there
  an error cannot pass for rounding."""
  model = Llama(
    CONFIG, packed_attention, lora_scale=LORA.scale, remat=remat, dtype=jnp.float64,
    fetch=fetch_on(mesh), stream=stream_on(mesh))
  algorithm = federated_algorithm(
    loss_fn=partial(packed_loss, model, head_parts=head_parts(mesh, 96)),
    gradient=mean_gradient, optimizer=adamw(1e-2),
    rule=rules.plain(), sharing=sharing.everything(), ranks=same_ranks(),
    compression=optax.identity(), aggregator=adaptive_mean(),
    server_optimizer=optax.sgd(1.0), num_sites=SITES,
    **laid_out(meshes.spread_of(mesh, chunk), chunk))
  with jax.enable_x64(True):
    base = placed(mesh, wide(params))
    adapter = wide(init_adapter(jax.random.key(1), CONFIG, LORA))
    inputs = base, wide(DATA), np.arange(SITES), None, jax.random.key(0)
    state = algorithm.init(adapter)
    program = algorithm.round.lower(state, *inputs).compile()
    state, metrics = program(state, *inputs)
    found = jax.device_get((state.adapter, metrics.train_loss))
    # A second one takes what the first one gave, where it gave it.
    jax.block_until_ready(program(state, *inputs))
  return found, program, base


@pytest.fixture(scope='module')
def alone(params):
  found, program, _ = a_round(params, None, 0)
  # One base for all sites.
  assert 'f64[8,4,24,9]' in program.as_text() and not stacked_kernels(program, 8)
  return found


def stacked_kernels(program, copies: int) -> list[str]:
  """Kernels of all layers that are there once for each site, whole or in part."""
  return [
    shape for a, b in kernel_parts() if (shape := f'[{copies},4,{a},{b}]') in program.as_text()]


def kernel_parts() -> set[tuple[int, int]]:
  """What may be on a device of a layer's kernels."""
  kernels = {CONFIG.projection_shape(name) for name in PROJECTIONS}
  return {(a // i, b // j) for a, b in kernels for i in (1, 2, 4) for j in (1, 2, 4)}


def gathered(program) -> set[tuple[int, ...]]:
  """The shapes of everything that is put together from several devices."""
  found = re.findall(r'= \(?\w+\[([\d,]*)\]\S* (?:all-gather|all-to-all)', program.as_text())
  return {tuple(map(int, filter(None, shape.split(',')))) for shape in found}


def assert_no_table(program, tensor):
  """Of 96 words in `tensor` parts no device gathers all of its part: [V / tensor, 24] or so.

  Hidden states of a pass's 53 tokens and of its 18 targets are of that width, too.
  """
  streams = PREFIX + ROWS * WIDTH, TARGETS
  tables = [one for one in gathered(program) if (
    one[-1:] == (24,) and len(one) in (2, 3) and one[-2] not in streams)]
  assert all(np.prod(one[:-1]) < 96 // tensor for one in tables), tables


@pytest.mark.parametrize('shape', [(1, 4, 2), (1, 8, 1)])
def test_a_split_head_is_never_whole(shape):
  """Losses and gradients of eight sites, and looked up rows, are those of one device."""
  mesh, rng = meshes.make_mesh(*shape), np.random.default_rng(5)
  table, hidden = (rng.normal(size=size).astype(np.float32) for size in ((96, 24), (8, 18, 24)))
  words = rng.integers(0, 96, (8, 18)).astype(np.int32)

  def found(where):
    fetch, parts = fetch_on(where), head_parts(where, 96)

    def one(hidden, table, words):
      looked_up = table[words] if where is None else fetch.rows(table, words)
      total = partial(loss.weighted_nll, 32, parts, fetch=fetch)
      return jax.value_and_grad(total)(
        hidden + looked_up, table, words, jnp.ones(18)), looked_up

    mapped = jax.vmap(one, (0, None, 0)) if where is None else jax.vmap(
      one, (0, None, 0), spmd_axis_name=('site', 'fsdp'))
    args = hidden, table, words
    if where is not None:
      sites, split = (NamedSharding(where, P(axes)) for axes in (
        ('site', 'fsdp'), ('tensor', 'fsdp')))
      args = jax.device_put(args, (sites, split, sites))
    program = jax.jit(mapped).lower(*args).compile()
    return program, jax.device_get(program(*args))

  (_, alone), (program, ours) = found(None), found(mesh)
  np.testing.assert_array_equal(ours[1], alone[1])
  for a, b in zip(ours[0], alone[0], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  assert_no_table(program, mesh.shape['tensor'])
  assert gathered(program)


# (site, fsdp, tensor), chunk
@pytest.mark.parametrize('shape, chunk, remat', [
  # The one that splits all three ways.
  ((2, 2, 2), 4, 'none'),
  pytest.param((8, 1, 1), 0, 'full', marks=pytest.mark.slow),
  pytest.param((1, 4, 2), 0, 'full', marks=pytest.mark.slow)])
def test_a_round_on_a_mesh(shape, chunk, remat, params, alone):
  mesh = meshes.make_mesh(*shape)
  site, fsdp, tensor = shape
  found, program, base = a_round(params, mesh, chunk, remat)
  for one, other in zip(*(jax.tree.leaves(each[0]) for each in (found, alone)), strict=True):
    assert np.linalg.norm(one - other) < 1e-10 * np.linalg.norm(other)
  np.testing.assert_allclose(found[1], alone[1], rtol=1e-6)
  for name in PROJECTIONS:
    kernel = base['layers'][name]['kernel']
    ways = (fsdp, tensor) if name not in ('o_proj', 'down_proj') else (tensor * fsdp, 1)
    expected = (4, *(size // way for size, way in zip(kernel.shape[1:], ways, strict=True)))
    assert {shard.data.shape for shard in kernel.addressable_shards} == {expected}
  assert {s.data.shape for s in base['embedding'].addressable_shards} == {
    (96 // fsdp // tensor, 24)}
  # Sites of one group of devices, with adapters and moments of their own and no others.
  groups, at_once = site * fsdp, chunk or SITES
  text = program.as_text()
  assert f'f64[{at_once // groups},4,24,9]' in text
  assert f'f64[{SITES},4,24,9]' not in text
  # Of the residual stream that each layer keeps, this device's channels.
  tokens, width = PREFIX + ROWS * WIDTH, 24 // tensor
  assert f'f64[4,{at_once // groups},{tokens},{width}]' in text
  assert tensor == 1 or f'f64[4,{at_once // groups},{tokens},24]' not in text
  # A chunk's results go to where they are kept; nothing else of its sites is on all devices.
  together = [
    line for line in text.splitlines() if f'= f64[{at_once},4,24,9]' in line
    # Another name of an array, and no other array.
    and ' parameter(' not in line and ' get-tuple-element(' not in line]
  assert len(together) <= bool(chunk) and all('all-gather' in line for line in together)
  assert not stacked_kernels(program, at_once // groups)
  # No base is put together: of kernels one layer, with this device's heads and channels.
  shapes, kernels = gathered(program), kernel_parts()
  assert not [one for one in shapes if one[-2:] in kernels and 4 in one[:-2]], shapes
  assert (fsdp > 1) == ((24, 40 // tensor) in {one[-2:] for one in shapes})
  # Of head and embedding one block of words at a time, a third of what is on the devices of 'fsdp'.
  assert_no_table(program, tensor)
  assert (fsdp > 1) == ((fsdp, 32 // fsdp // tensor, 24) in shapes), shapes
  # Nor kept for the gradient.
  assert fsdp == 1 or f'f64[4,24,{40 // tensor}]' not in text


@pytest.mark.slow
def test_decoding_on_a_mesh(params):
  """The same tokens, by two copies of the base, each split in four."""
  mesh = meshes.make_mesh(2, 2, 2)
  adapter = jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(jax.random.key(7), x.shape),
    init_adapter(jax.random.key(1), CONFIG, LORA))
  model = Llama(CONFIG, cached_attention, lora_scale=LORA.scale)
  rng = np.random.default_rng(2)
  # More than there are rows, of unlike lengths: they are taken again, and given up.
  questions = [
    Question(rng.integers(3, 96, length).astype(np.int32), limit)
    for length, limit in ((6, 12), (3, 12), (5, 4), (33, 5), (4, 70), (2, 0), (7, 9), (6, 11))]
  found = [
    decode(
      decoder(model, 1, where), adapter, placed(where, params), np.arange(3, 8, dtype=np.int32),
      questions, eos=[96], pieces=np.array([END], np.int32), rows=4)
    for where in (None, mesh)]
  for one, other, question in zip(*found, questions, strict=True):
    assert one.tokens.tolist() == other.tokens.tolist() and one.passes == other.passes
    # No token is 96, so each goes on to its limit.
    assert len(one.tokens) == question.limit


def _is_shape(node) -> bool:
  return isinstance(node, tuple) and isinstance(node[0], int)


@pytest.mark.parametrize('kind, fused', [
  ('none', False), ('int8', False), ('nf4', False), ('nf4', True)])
def test_one_rule_for_every_leaf(kind, fused):
  """Of a model with all that a model may have; layers stay whole, kernels are split both ways."""
  mesh = meshes.make_mesh(2, 2, 2)
  config = dataclasses.replace(
    CONFIG, hidden_size=256, intermediate_size=384, head_dim=64, fused=fused, norms_after=fused,
    biases=() if fused else PROJECTIONS, qk_norm=True, vocab_size=97)
  shapes = params_shape(config, Placement(jnp.float32, kind))
  found = base_shardings(mesh, config, shapes)
  held = jax.tree.map(lambda leaf, where: where.shard_shape(leaf.shape), shapes, found)
  assert {shape[0] for shape in jax.tree.leaves(held['layers'], is_leaf=_is_shape)} == {4}
  for name in config.projections:
    # The codes of a quantised kernel come before their scales.
    whole = jax.tree.leaves(shapes['layers'][name]['kernel'])[0]
    part = jax.tree.leaves(held['layers'][name]['kernel'], is_leaf=_is_shape)[0]
    assert np.prod(part) * 4 == np.prod(whole.shape)
  # 97 tokens cannot be dealt out evenly.
  assert found['embedding'].is_fully_replicated


def test_rules_are_total():
  paths = {'embedding': 2, 'norm/weight': 1, 'layers/q_proj/kernel': 3, 'layers/o_proj/kernel': 3}
  assert set(specs(paths)) == set(paths)
  with pytest.raises(ValueError, match='layers/new/kernel of 3 dimensions: 0 sharding rules'):
    specs(paths | {'layers/new/kernel': 3})
  with pytest.raises(ValueError, match='layers/q_proj/kernel of 5 dimensions'):
    specs(paths | {'layers/q_proj/kernel': 5})
  with pytest.raises(ValueError, match="rule 'layers/new/.+' matches no leaf"):
    specs(paths, RULES | {'layers/new/.+': {}})
  with pytest.raises(ValueError, match='embedding of 2 dimensions: 2 sharding rules'):
    specs(paths, RULES | {'embed.*': {2: RULES['embedding|head'][2]}})


@pytest.mark.parametrize('sizes, message', [
  ((3, 1, 3), 'site=3, fsdp=1, tensor=3 need 9 devices; there are 8'),
  ((16, 1, 1), 'need 16 devices'),
  ((-1, 3, 1), 'need a multiple of 3 devices'),
  ((-1, 1, 9), 'need a multiple of 9 devices'),
])
def test_meshes_that_the_devices_do_not_make(sizes, message):
  with pytest.raises(InputError, match=re.escape(message)):
    meshes.make_mesh(*sizes)


def test_a_mesh_of_what_is_left():
  assert dict(meshes.make_mesh(-1, 1, 2).shape) == {'site': 4, 'fsdp': 1, 'tensor': 2}
  assert meshes.make_mesh(3, 1, 1).size == 3
  assert meshes.make_mesh(1, 1, 1) is None


@pytest.mark.parametrize('sizes, change, message', [
  ((1, 1, 4), {}, 'config.mesh.tensor=4: the model has num_kv_heads=2'),
  ((1, 8, 1), {'hidden_size': 20}, 'config.mesh.fsdp=8: layers/'),
  ((1, 1, 2), {'intermediate_size': 41}, 'config.mesh.tensor=2: layers/'),
])
def test_models_that_a_mesh_does_not_divide(sizes, change, message):
  config = dataclasses.replace(CONFIG, **change)
  with pytest.raises(InputError, match=re.escape(message)):
    base_shardings(meshes.make_mesh(*sizes), config, params_shape(config, Placement()))


def test_a_chunk_that_the_groups_do_not_share():
  mesh = meshes.make_mesh(2, 2, 2)
  assert meshes.spread_of(mesh, 4).parts == meshes.spread_of(mesh, 0).parts == 4
  with pytest.raises(InputError, match='config.fed.chunk=6: .* 4 groups'):
    meshes.spread_of(mesh, 6)

"""The ledger against messages that are really encoded to bytes, here and independently."""

import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedmedjax import tree
from fedmedjax.fed import ledger, sharing
from fedmedjax.fed.compression import bfloat16, compress, float32, quantised, sign, top_k
from fedmedjax.fed.ranks import cut, mixed_ranks, rank_first

# Sizes 3 * 5 * 3 = 45 and 3 * 3 * 7 = 63: odd, no multiple of a block of 8; 216 in all.
ADAPTER = {'layers': {
  'q': {'a': jnp.zeros((3, 5, 3)), 'b': jnp.zeros((3, 3, 7))},
  'v': {'a': jnp.zeros((3, 5, 3)), 'b': jnp.zeros((3, 3, 7))}}}
# (codec, name of its values, block, share kept)
CODECS = [
  (float32(), 'float32', 0, 1), (bfloat16(), 'bfloat16', 0, 1), (quantised(8), 'int8', 0, 1),
  (quantised(8, 8), 'int8', 8, 1), (quantised(4), 'int4', 0, 1), (quantised(4, 8), 'int4', 8, 1),
  (quantised(2, 8), 'int2', 8, 1), (sign(), 'sign', 0, 1), (sign(8), 'sign', 8, 1),
  (top_k(0.04, float32()), 'float32', 0, 0.04), (top_k(0.3, float32()), 'float32', 0, 0.3),
  (top_k(0.3, quantised(4, 8)), 'int4', 8, 0.3), (top_k(0.04, sign()), 'sign', 0, 0.04)]
HEADER_UP, HEADER_DOWN = struct.pack('<iififff', *range(7)), struct.pack('<iII', *range(3))


def bits_to_bytes(values, bits: int) -> bytes:
  """Bit by bit, the lowest first: nothing of the library's packing."""
  stream = [(int(value) >> place) & 1 for value in values for place in range(bits)]
  stream += [0] * (-len(stream) % 8)
  return bytes(
    sum(bit << place for place, bit in enumerate(stream[i:i + 8]))
    for i in range(0, len(stream), 8))


def dense(x, read, name, block) -> dict[str, bytes]:
  """The arrays of a codec that sends every value, from what the other end read of them.

  What was read lies on the codec's grid, so scales and codes can be told from it; a block's
  largest value is always on the grid's end.
  """
  if name == 'float32':
    return {'values': x.astype('<f4').tobytes()}
  if name == 'bfloat16':
    return {'values': (read.astype('<f4').view('<u4') >> 16).astype('<u2').tobytes()}
  bits = 1 if name == 'sign' else int(name[3:])
  levels = 1 if name == 'sign' else 2 ** (bits - 1) - 1
  scales, codes = b'', []
  for start in range(0, len(x), block or len(x)):
    part = read[start:start + (block or len(x))].astype(np.float64)
    scales += struct.pack('<f', np.abs(part).max() / levels)
    ticks = np.round(part / np.abs(part).max() * levels)
    codes += list(ticks > 0 if name == 'sign' else ticks + levels)
  return {'scales': scales, 'codes': bits_to_bytes(codes, bits)}


def encoded(x, read, name, block, share) -> dict[str, bytes]:
  """Every array of the message, as bytes."""
  if share == 1:
    return dense(x, read, name, block)
  count = max(1, round(share * len(x)))
  places = np.sort(np.argsort(-np.abs(x), kind='stable')[:count])
  mask = bits_to_bytes(np.isin(np.arange(len(x)), places), 1)
  indices = {'indices': places.astype('<u2').tobytes()}
  kept = dense(x[places], read[places], name, block)
  return (indices if 2 * count < len(mask) else {'mask': mask}) | {
    f'kept/{part}': content for part, content in kept.items()}


@pytest.mark.parametrize(
  'codec, name, block, share', CODECS, ids=[f'{c[0].name} block {c[2]}' for c in CODECS])
def test_the_ledger_counts_what_is_encoded(codec, name, block, share):
  """Byte for byte in every array; scales, read back through a product, to rounding."""
  exchanged = ledger.exchange(ADAPTER, sharing.everything(), codec)
  counted = {(e.tensor, e.part): e.bytes for e in exchanged.up if e.kind == 'adapter'}
  message = b''
  encode, decode = jax.jit(codec.encode), jax.jit(codec.decode, static_argnums=1)
  for number, (path, leaf) in enumerate(
      zip(tree.paths(ADAPTER), jax.tree.leaves(ADAPTER), strict=True)):
    x = np.random.default_rng(number).normal(size=leaf.size).astype(np.float32)
    parts = encode(x, jax.random.key(number))
    contents = encoded(x, np.asarray(decode(parts, leaf.size)), name, block, share)
    arrays = {
      tree.path_string(part): np.asarray(array)
      for part, array in jax.tree_util.tree_leaves_with_path(parts)}
    assert set(arrays) == set(contents)
    for part, content in contents.items():
      assert counted.pop((path, part)) == len(content)
      if part.endswith('scales'):
        np.testing.assert_allclose(np.frombuffer(content, '<f4'), arrays[part], rtol=1e-6)
      else:
        assert content == arrays[part].tobytes()
      message += content
  assert not counted
  assert ledger.num_bytes(exchanged.up) == len(message + HEADER_UP)
  # The server's adapter goes down as it is, 45 + 63 + 45 + 63 values.
  assert ledger.num_bytes(exchanged.down) == 4 * 216 + len(HEADER_DOWN)


def test_a_message_by_hand():
  """Leaf q/b, 63 values, k = round(0.3 * 63) = 19: indices of 2 bytes are 38, the mask is 8; 19
  nibbles are 10 bytes, and ceil(19 / 8) = 3 scales 12."""
  exchanged = ledger.exchange(ADAPTER, sharing.everything(), top_k(0.3, quantised(4, 8)))
  found = {e.part: e.bytes for e in exchanged.up if e.tensor == 'layers/q/b'}
  assert found == {'mask': 8, 'kept/codes': 10, 'kept/scales': 12}
  assert ledger.by_tensor(exchanged.up)['adapter', 'layers/q/b'] == 30


def test_only_what_is_shared_is_charged():
  """B alone: 63 + 63 floats each way. Nothing shared: no message, not even a header."""
  only_b = sharing.Sharing(lambda path, number: True, lambda path: path.endswith('/b'))
  exchanged = ledger.exchange(ADAPTER, only_b, float32())
  assert ledger.num_bytes(exchanged.up) == 4 * 126 + len(HEADER_UP)
  assert ledger.exchange(ADAPTER, sharing.nothing(), float32()) == ledger.Exchange((), ())


def test_factors_in_turns_are_charged_in_turns():
  """RoLoRA, up: B in round 0, 2 * 63 floats; A in round 1, 2 * 45. Down: both at first; then the
  factor of the round before; both when a round was missed."""
  share = sharing.alternating(tree.paths(ADAPTER))
  sent = lambda *rounds: ledger.exchange(ADAPTER, share, float32(), *rounds)  # noqa: E731
  first, second = sent(0), sent(1, 0)
  assert ledger.num_bytes(first.up) == 4 * 126 + len(HEADER_UP)
  assert ledger.num_bytes(second.up) == 4 * 90 + len(HEADER_UP)
  assert sent() == first
  values = {
    rounds: (ledger.num_bytes(sent(*rounds).down) - len(HEADER_DOWN)) // 4
    for rounds in ((0,), (1,), (1, 0), (2, 1), (2, 0), (9, 8))}
  assert values == {(0,): 216, (1,): 216, (1, 0): 126, (2, 1): 90, (2, 0): 216, (9, 8): 126}
  rows = list(ledger.table(
    [(1, ('x',), (first,), (True,)), (2, ('x',), (second,), (True,))]))
  assert {row.round for row in rows if row.up and row.tensor.endswith('/a')} == {2}


def test_a_frozen_factor_travels_once():
  """FFA-LoRA: A and B when a site first comes, B alone ever after. FedSVD: the server moves A, so
  that it goes down with B in every round, 216, and never up."""
  share = sharing.only_b(tree.paths(ADAPTER))
  for rounds, values in (((0,), 216), ((5,), 216), ((5, 4), 126), ((5, 0), 126)):
    exchanged = ledger.exchange(ADAPTER, share, float32(), *rounds)
    assert ledger.num_bytes(exchanged.down) == 4 * values + len(HEADER_DOWN)
    assert ledger.num_bytes(exchanged.up) == 4 * 126 + len(HEADER_UP)
    served = ledger.exchange(ADAPTER, sharing.served_a(tree.paths(ADAPTER)), float32(), *rounds)
    assert ledger.num_bytes(served.down) == 4 * 216 + len(HEADER_DOWN)
    assert served.up == exchanged.up


def test_a_site_of_lower_rank_by_hand():
  """Rank 2 of 3: A has 2 * 15 = 30 values, B 2 * 21 = 42, twice. In 4 bits with a scale per 8:
  15 + 4 * 4 and 21 + 4 * 6 bytes."""
  exchanged = ledger.exchange(cut(ADAPTER, 2), sharing.everything(), quantised(4, 8))
  assert ledger.num_bytes(exchanged.down) == 4 * 144 + len(HEADER_DOWN)
  assert ledger.by_tensor(exchanged.up)['adapter', 'layers/q/a'] == 15 + 16
  assert ledger.by_tensor(exchanged.up)['adapter', 'layers/v/b'] == 21 + 24
  assert cut(ADAPTER, 3)['layers']['q']['a'].shape == (3, 3, 5)


@pytest.mark.parametrize('codec', [float32(), bfloat16(), quantised(8), quantised(4, 8)])
def test_a_site_of_lower_rank_sends_the_beginning_of_the_whole(codec):
  """What the compiled round makes of the whole tensors, zero where the site has no rank, is what
  the counted arrays of the cut ones decode to."""
  ranks, key = mixed_ranks((2,), 3), jax.random.key(7)
  draw = lambda x: jnp.asarray(  # noqa: E731
    np.random.default_rng(x.size).normal(size=x.shape), jnp.float32)
  update = ranks.mask(jax.tree.map(draw, ADAPTER), 0)
  sender = rank_first(compress(codec))
  sent, _ = jax.jit(sender.update)(update, sender.init(update), key=key)
  exchanged = ledger.exchange(cut(ADAPTER, 2), sharing.everything(), codec)
  counted = ledger.by_tensor(exchanged.up)
  encode, decode = jax.jit(codec.encode), jax.jit(codec.decode, static_argnums=1)
  flat = zip(tree.paths(update), jax.tree.leaves(update), jax.tree.leaves(sent), strict=True)
  for number, (path, leaf, whole) in enumerate(flat):
    axis = -1 if path.endswith('/a') else -2
    own = jnp.moveaxis(leaf, axis, 0)[:2].reshape(-1)
    parts = encode(own, jax.random.fold_in(key, number))
    assert counted['adapter', path] == sum(np.asarray(x).nbytes for x in jax.tree.leaves(parts))
    moved = jnp.moveaxis(whole, axis, 0)
    np.testing.assert_allclose(
      moved[:2].reshape(-1), decode(parts, own.size), rtol=1e-6, atol=1e-7)
    assert not moved[2].any()


def test_control_variates_and_residuals_are_charged():
  """Control variates both ways in float32, whatever the codec; a residual down only."""
  plain = ledger.exchange(ADAPTER, sharing.everything(), quantised(8))
  more = ledger.exchange(
    ADAPTER, sharing.everything(), quantised(8), control=ADAPTER,
    residual={'q': jnp.zeros((3, 5, 7))})
  assert ledger.num_bytes(more.up) - ledger.num_bytes(plain.up) == 4 * 216
  assert ledger.num_bytes(more.down) - ledger.num_bytes(plain.down) == 4 * 216 + 4 * 105


def test_the_table_adds_up_to_the_messages():
  """Two rounds of two sites, of which one sent nothing back: 4 down, 3 up."""
  exchanged = ledger.exchange(ADAPTER, sharing.everything(), quantised(4, 8))
  rows = list(ledger.table([
    (1, ('x', 'y'), (exchanged,) * 2, (True, False)), (2, ('y', 'z'), (exchanged,) * 2, (1, 1))]))
  assert sum(row.down for row in rows) == 4 * ledger.num_bytes(exchanged.down)
  assert sum(row.up for row in rows) == 3 * ledger.num_bytes(exchanged.up)
  assert {row.site for row in rows if not row.up and row.kind == 'adapter'} == {'y'}
  assert len(rows) == len({row[:4] for row in rows})
  assert {row.codec for row in rows if row.tensor == 'layers/q/a'} == {'int4'}


def test_what_is_simulated_is_what_is_charged():
  """The compiled transformation gives what the decoder makes of the counted arrays."""
  codec = quantised(4, 8)
  update = {'a': jnp.sin(jnp.arange(45.0)).reshape(3, 5, 3), 'b': jnp.cos(jnp.arange(45.0))}
  sender, key = compress(codec), jax.random.key(5)
  sent, _ = jax.jit(sender.update)(update, sender.init(update), key=key)
  encode, decode = jax.jit(codec.encode), jax.jit(codec.decode, static_argnums=1)
  for number, path in enumerate('ab'):
    parts = encode(update[path].reshape(-1), jax.random.fold_in(key, number))
    np.testing.assert_allclose(decode(parts, 45), sent[path].reshape(-1), rtol=1e-6, atol=1e-7)


def test_a_table_of_more_sites_than_exchanges_is_none():
  with pytest.raises(ValueError, match='argument'):
    list(ledger.table([(1, ('x', 'y'), (ledger.Exchange((), ()),), (True,))]))


def test_the_arrays_of_a_size_are_worked_out_once():
  codec = quantised(4, 8)
  assert ledger._arrays(codec, 5) is ledger._arrays(codec, 5)


def test_a_judge_is_sent_the_others_adapters():
  """Two more of its rank: 2 * 216 floats down, and an answer of 4 bytes for each up, whatever the
  codec; of what was not trained in the round it has its own copy, so of B alone 2 * 126. One of
  rank 2 has 2 * 72 floats, and its judge of rank 3 may lack what is frozen: all of it; so may a
  judge of rank 2 of one of rank 3."""
  judged = lambda share, *others, own=ADAPTER: [  # noqa: E731
    (ledger.num_bytes(one.down), ledger.num_bytes(one.up)) for one in (
      ledger.exchange(own, share, quantised(4, 8), 1, 0, judged=shown) for shown in (
        (), others))]
  only_b = sharing.only_b(tree.paths(ADAPTER))
  for share, others, floats, answers in (
      (sharing.everything(), [(ADAPTER, 2)], 2 * 216, 2), (only_b, [(ADAPTER, 2)], 2 * 126, 2),
      (only_b, [(ADAPTER, 1), (cut(ADAPTER, 2), 3)], 126 + 3 * 144, 4)):
    (down, up), (more_down, more_up) = judged(share, *others)
    assert (more_down - down, more_up - up) == (4 * floats, 4 * answers)
  (down, _), (more_down, _) = judged(only_b, (ADAPTER, 1), own=cut(ADAPTER, 2))
  assert more_down - down == 4 * 216


def test_a_loss_at_the_anchor_is_four_bytes_up():
  plain, more = (
    ledger.exchange(ADAPTER, sharing.everything(), float32(), start_loss=named)
    for named in (False, True))
  assert more.down == plain.down
  assert ledger.num_bytes(more.up) == ledger.num_bytes(plain.up) + len(struct.pack('<f', 0.0))

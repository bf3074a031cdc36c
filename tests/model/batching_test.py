"""Questions that share rows and a cache that grows and shrinks get the output each gets alone."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from fedmedjax.model import batch_sizes, batching, llama
from fedmedjax.model.decode import cached_attention
from fedmedjax.model.input_blocks import rung
from fedmedjax.model.loss import packed_attention
from fedmedjax.model.speculation import END

PREFIX = np.array([5, 9, 11], np.int32)
# Tokens of the question and most new ones; some say nothing, or one token.
SHAPES = ((130, 60), (40, 150), (33, 3), (32, 1), (12, 0), *((n, 20 - n) for n in range(1, 15)))


@pytest.fixture(scope='module')
def questions():
  rng = np.random.default_rng(3)
  shapes = rng.permutation(SHAPES)
  return [batching.Question(rng.integers(3, TINY.vocab_size, n).astype(np.int32), int(limit))
          for n, limit in shapes]


@pytest.fixture(scope='module')
def alone(tiny_params, questions):
  """What the model says to each, by its plain forward pass over 256 places."""
  model = llama.Llama(TINY, packed_attention)

  @jax.jit
  def following(tokens, length):
    hidden, _ = model.apply(
      {'params': tiny_params}, tokens, jnp.arange(256), None,
      (jnp.zeros(0, bool), jnp.ones((1, 256), jnp.int32)))
    return jnp.argmax(hidden[length - 1] @ llama.head_weight(tiny_params).T)

  def answer(question):
    said = [*PREFIX, *question.tokens]
    for _ in range(question.limit):
      padded = np.zeros(256, np.int32)
      padded[:len(said)] = said
      said.append(int(following(padded, len(said))))
    return said[len(PREFIX) + len(question.tokens):]

  return [answer(question) for question in questions]


def decode(params, questions, *, eos=(), rows=4, guesses=1, pieces=(END,), advance=lambda n: None):
  return batching.decode(
    batching.decoder(llama.Llama(TINY, cached_attention), guesses), {}, params, PREFIX, questions,
    eos=list(eos) or [-1], pieces=np.asarray(pieces), rows=rows, advance=advance)


@pytest.mark.parametrize(('rows', 'guesses'), [
  (4, 1), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((16, 0), (1, 2)))])
def test_each_says_what_it_says_alone(tiny_params, questions, alone, rows, guesses):
  # An answer as a piece: some guesses are right.
  pieces = [*max(alone, key=len)[:40], END]
  steps = []
  found = decode(
    tiny_params, questions, rows=rows, guesses=guesses, pieces=pieces, advance=steps.append)
  assert [one.tokens.tolist() for one in found] == alone
  assert sum(steps) == len(questions)
  passes, said = sum(one.passes for one in found), sum(map(len, alone))
  assert passes == said if guesses == 0 else passes < said


@pytest.mark.slow
def test_each_ends_where_it_ends_alone(tiny_params, questions, alone):
  (eos, _), = Counter(token for said in alone for token in said).most_common(1)
  ended = [said[:said.index(eos)] if eos in said else said for said in alone]
  assert ended != alone
  found = decode(tiny_params, questions, eos=[eos], guesses=2)
  assert [one.tokens.tolist() for one in found] == ended
  order = np.random.default_rng(1).permutation(len(questions))
  found = decode(tiny_params, [questions[i] for i in order], eos=[eos], rows=3)
  assert [one.tokens.tolist() for one in found] == [ended[i] for i in order]


def watched(decoder):
  """(the decoder, [(rows, slots, most passes of a row)] of its calls of generate)"""
  calls = []

  def generate(prefix, eos, pieces, state, until):
    before = np.array(state.outputs.passes)
    after = decoder.generate(prefix, eos, pieces, state, until)
    calls.append((
      len(before), after.own.k.shape[-2], int((np.array(after.outputs.passes) - before).max())))
    return after

  return decoder._replace(generate=generate), calls


def test_rows_are_taken_again_and_given_up(tiny_params):
  """24 outputs of 1 to 24 tokens in 8 rows: 300 tokens. Batches that wait for their longest, in
  the same order, compute 8 times the sum of three longest."""
  limits = np.random.default_rng(5).permutation(np.arange(1, 25))
  noted, calls = watched(batching.decoder(llama.Llama(TINY, cached_attention), 0))
  found = batching.decode(
    noted, {}, tiny_params, PREFIX,
    [batching.Question(np.full(8, 7, np.int32), int(limit)) for limit in limits], eos=[-1],
    pieces=np.asarray([END]), rows=8)
  assert [len(one.tokens) for one in found] == limits.tolist()
  assert [rows for rows, *_ in calls] == sorted((rows for rows, *_ in calls), reverse=True)
  assert {rows for rows, *_ in calls} == {8, 4, 2}
  assert {slots for _, slots, _ in calls} == {64}
  computed = sum(rows * passes for rows, _, passes in calls)
  waiting = sum(8 * limits[start:start + 8].max() for start in (0, 8, 16))
  assert 300 <= computed < 0.7 * waiting


def test_the_cache_grows_and_shrinks(tiny_params, questions, alone):
  """In few sizes, the largest of which is the one that is planned."""
  decoder = batching.decoder(llama.Llama(TINY, cached_attention), 1)
  planned = batching.largest(decoder, questions, 4)
  assert planned == batching.Sizes(4, 192, 192, 192, 192, 1)
  noted, calls = watched(decoder)
  options = dict(eos=[-1], pieces=np.asarray([END]))
  found = batching.decode(noted, {}, tiny_params, PREFIX, questions, rows=4, **options)
  assert [one.tokens.tolist() for one in found] == alone
  slots = [slots for _, slots, _ in calls]
  assert len(set(slots)) > 1 and max(slots) == planned.slots
  steps = np.sign(np.diff(slots))
  assert {-1, 1} <= set(steps.tolist())
  # Questions that are a little shorter compile nothing.
  compiled = decoder.generate._cache_size()
  shorter = [q._replace(limit=max(0, q.limit - 1)) for q in questions]
  batching.decode(decoder, {}, tiny_params, PREFIX, shorter, rows=4, **options)
  assert decoder.generate._cache_size() == compiled


def test_an_accelerator_keeps_its_rows(tiny_params, questions, alone, monkeypatch):
  """There fewer are not faster."""
  monkeypatch.setattr(batch_sizes, '_HALVINGS', 0)
  noted, calls = watched(batching.decoder(llama.Llama(TINY, cached_attention), 0))
  some = [i for i, q in enumerate(questions) if q.limit < 20][:3]
  found = batching.decode(
    noted, {}, tiny_params, PREFIX, [questions[i] for i in some], eos=[-1],
    pieces=np.asarray([END]), rows=8)
  assert [one.tokens.tolist() for one in found] == [alone[i] for i in some]
  assert [rows for rows, *_ in calls] == [8] and calls[0][2] == max(len(alone[i]) for i in some)


def test_few_shapes():
  assert [rung(n) for n in (0, 1, 64, 65, 96, 97, 129, 193, 385, 513)] == [
    64, 64, 64, 96, 96, 128, 192, 256, 512, 768]
  assert batching.levels(32, 100) == [32, 16, 8]
  assert batching.levels(32, 13) == [16, 8]
  assert batching.levels(32, 1) == [8] and batching.levels(1, 1) == [1]

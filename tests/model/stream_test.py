"""Rows that questions take in turn, in a cache that grows and shrinks, say what each says alone."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from fedmedjax.model import llama, stream
from fedmedjax.model.decode import cached_attention
from fedmedjax.model.draft import END
from fedmedjax.model.loss import packed_attention

PREFIX = np.array([5, 9, 11], np.int32)
# Tokens of the question and most new ones: with 4 rows, the cache of the first grows to all its
# slots, those of the last are short again; some say nothing, or one token.
SHAPES = ((130, 60), (40, 150), (33, 3), (32, 1), (12, 0), *((n, 20 - n) for n in range(1, 15)))


@pytest.fixture(scope='module')
def questions():
  rng = np.random.default_rng(3)
  shapes = rng.permutation(SHAPES)
  return [stream.Question(rng.integers(3, TINY.vocab_size, n).astype(np.int32), int(limit))
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
  return stream.decode(
    stream.decoder(llama.Llama(TINY, cached_attention), guesses), {}, params, PREFIX, questions,
    eos=list(eos) or [-1], pieces=np.asarray(pieces), rows=rows, advance=advance)


@pytest.mark.parametrize(('rows', 'guesses'), [(4, 1), (16, 0), (1, 2)])
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


def test_each_ends_where_it_ends_alone(tiny_params, questions, alone):
  (eos, _), = Counter(token for said in alone for token in said).most_common(1)
  ended = [said[:said.index(eos)] if eos in said else said for said in alone]
  assert ended != alone
  found = decode(tiny_params, questions, eos=[eos], guesses=2)
  assert [one.tokens.tolist() for one in found] == ended
  order = np.random.default_rng(1).permutation(len(questions))
  found = decode(tiny_params, [questions[i] for i in order], eos=[eos], rows=3)
  assert [one.tokens.tolist() for one in found] == [ended[i] for i in order]


class Watched:
  """A decoder that notes (rows, slots, passes) of every call of go_on."""

  def __init__(self, inner):
    self.inner, self.calls = inner, []

  def __getattr__(self, name):
    return getattr(self.inner, name)

  def go_on(self, behind, eos, pieces, rows, until):
    before = np.array(rows.said.passes)
    after = self.inner.go_on(behind, eos, pieces, rows, until)
    passes = int((np.array(after.said.passes) - before).max())
    self.calls.append((len(before), rows.own.k.shape[-2], passes))
    return after


def test_rows_are_taken_again_and_given_up(tiny_params):
  """24 outputs of 1 to 24 tokens in 8 rows: 300 tokens. Batches that wait for their longest, in
  the same order, compute 8 times the sum of three longest."""
  limits = np.random.default_rng(5).permutation(np.arange(1, 25))
  watched = Watched(stream.decoder(llama.Llama(TINY, cached_attention), 0))
  found = stream.decode(
    watched, {}, tiny_params, PREFIX,
    [stream.Question(np.full(8, 7, np.int32), int(limit)) for limit in limits], eos=[-1],
    pieces=np.asarray([END]), rows=8)
  assert [len(one.tokens) for one in found] == limits.tolist()
  assert {rows for rows, *_ in watched.calls} == {8, 4, 2}
  assert {slots for _, slots, _ in watched.calls} == {33}
  computed = sum(rows * passes for rows, _, passes in watched.calls)
  waiting = sum(8 * limits[start:start + 8].max() for start in (0, 8, 16))
  assert 300 <= computed < 0.7 * waiting


def test_few_shapes(tiny_params, questions):
  """The cache's slots are powers of two up to what the longest may need, its rows halves."""
  sizes = stream.largest(stream.decoder(llama.Llama(TINY, cached_attention), 1), questions, 16)
  assert sizes == stream.Sizes(16, 192, 160, 150)
  assert stream._levels(32, 100) == [32, 16, 8]
  assert stream._levels(32, 13) == [16, 8]
  assert stream._levels(32, 1) == [8] and stream._levels(1, 1) == [1]

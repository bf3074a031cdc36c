"""Losses that are asked of the sites, with sites that answer by hand."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from fedmedjax.deploy.conversation import Missing
from fedmedjax.deploy.judges import FewerJudges, Judges
from fedmedjax.deploy.messages import Message
from fedmedjax.fed import wire
from fedmedjax.fed.compression import float32
from fedmedjax.fed.sharing import everything

NAMES = ('b', 'a', 'c')
TASKS = {0: ('ner',), 1: ('ner', 're'), 2: ()}


class Talk:
  """A site's loss of an adapter is its value times 10 to the number of the group."""

  def __init__(self, *silent: int):
    self.silent, self.asked = silent, []

  def ask(self, kind, number, questions):
    found = {}
    for site, question in questions.items():
      self.asked.append((site, question))
      values = [question.arrays[name][0] for name in sorted(
        question.arrays, key=lambda name: int(name.rpartition(':')[2]))]
      groups = np.asarray([10 ** (k + 1) for k in range(len(TASKS[site]))], np.float32)
      losses = np.asarray(values, np.float32)[:, None] * groups[None]
      peer = question.fields['want'] == 'peer'
      found[site] = Missing('is late') if site in self.silent else Message(
        kind, '', NAMES[site], number, '', {}, {'header/peer_loss:values': losses.mean(axis=1)}
        if peer else {'query/losses:values': losses})
    return found


def judges(talk: Talk, arrived: list[int], warned: list, *needs: str) -> Judges:
  agreed = types.SimpleNamespace(
    names=NAMES, wire=wire.Wire({'w': np.zeros(1, np.float32)}, everything(), float32(), (),
                                False, 0),
    parts=types.SimpleNamespace(aggregator=types.SimpleNamespace(needs=frozenset(needs))))
  state = types.SimpleNamespace(round=0, folded=(), adapter={'w': jnp.zeros(1)})
  return Judges(agreed, talk, state, 4, [[0, 1, 2]], np.asarray([0, 1, 2]), arrived, TASKS,
                warned.append)


def test_all_who_hold_validation_notes_judge_every_adapter_once():
  """Groups stand by (name, task): a ner, a re, b ner. Adapters 1, 2, 1 have losses 10 x, 100 x,
  10 x; l_V is their mean, 40 x."""
  talk = Talk()
  queries = judges(talk, [0, 1], []).queries
  adapters = {'w': jnp.asarray([[1.0], [2.0], [1.0]])}
  np.testing.assert_allclose(
    queries.answer_loss(adapters), [[10, 100, 10], [20, 200, 20], [10, 100, 10]])
  assert queries.group_site().tolist() == [1, 1, 0]
  # Two adapters were sent, not three.
  assert sorted((site, len(question.arrays)) for site, question in talk.asked) == [(0, 2), (1, 2)]
  np.testing.assert_allclose(queries.validation_loss(adapters), [40, 80, 40])
  queries.answer_loss(adapters)
  assert len(talk.asked) == 4


def test_peers_judge_the_others_that_have_arrived():
  """b says 10 x of the others, a (10 x + 100 x) / 2 = 55 x; c holds no notes, and nobody judges
  itself: 0 stands for that."""
  talk = Talk()
  queries = judges(talk, [0, 1, 2], [], 'peers').queries
  losses = queries.answer_loss({'w': jnp.asarray([[1.0], [2.0], [3.0]])})
  np.testing.assert_allclose(losses, [[55, 0], [0, 20], [165, 30]])
  assert queries.group_site().tolist() == [1, 0]
  assert {site: sorted(question.arrays) for site, question in talk.asked} == {
    0: ['judged/w:0', 'judged/w:1'], 1: ['judged/w:0', 'judged/w:1']}


def test_a_judge_that_is_late_is_left_out_and_nobody_is_asked_twice():
  talk, warned = Talk(1), []
  asked = judges(talk, [0, 1], warned)
  adapters = {'w': jnp.asarray([[1.0], [2.0]])}
  with pytest.raises(FewerJudges):
    asked.queries.answer_loss(adapters)
  np.testing.assert_allclose(asked.queries.answer_loss(adapters), [[10], [20]])
  assert asked.queries.group_site().tolist() == [0] and len(talk.asked) == 2
  assert warned == ['round 5: site a judges nobody, it is late']


def test_without_any_judge_there_is_no_loss():
  asked = judges(Talk(0, 1), [0, 1], [])
  adapters = {'w': jnp.asarray([[1.0], [2.0]])}
  with pytest.raises(FewerJudges):
    asked.queries.validation_loss(adapters)
  assert np.isnan(asked.queries.validation_loss(adapters)).all()

"""What a site remembers over a restart, by hand: a tensor of two numbers, which all rounds send."""

import types

import numpy as np
import pytest

from fedmedjax.deploy.keeping import Keeping
from fedmedjax.deploy.memory import LACKS, STATE, Memory, Unanswerable
from fedmedjax.deploy.messages import Message
from fedmedjax.fed import apart, wire
from fedmedjax.fed.compression import float32
from fedmedjax.fed.sharing import everything
from fedmedjax.fed.types import SiteState


def state(value: float) -> SiteState:
  return SiteState({'w': np.full((1, 2), value, np.float32)}, (), ())


@pytest.fixture
def begun(tmp_path, monkeypatch):
  """() -> the memory of a site, as after a restart."""
  monkeypatch.setattr(apart, 'fresh_site', lambda parts, adapter: state(0))
  adapter = {'w': np.zeros(2, np.float32)}
  agreed = types.SimpleNamespace(
    wire=wire.Wire(adapter, everything(), float32(), (), False, 0), parts=types.SimpleNamespace(
      aggregator=types.SimpleNamespace(fold=lambda adapter: ()),
      rule=types.SimpleNamespace(init=lambda adapter: ((), ()))))
  study = types.SimpleNamespace(
    index=0, agreed=agreed, trainable=types.SimpleNamespace(adapter=adapter))
  return lambda: Memory(study, Keeping(tmp_path, 'study', 'notes', print))


def sent(held: int, value: float) -> Message:
  return Message('local_round', 'study', 'a', 1, 'n', {'held': held}, {
    'adapter/w:values': np.full(2, value, np.float32)})


def test_a_site_goes_on_after_a_restart(begun):
  first = begun()
  anchor = first.received(sent(-1, 1), 0)
  first.keep(b'question', 0, 0, -1, anchor, first.state_of(-1), state(3), b'answer')
  again = begun()
  assert again.received(sent(0, 5), 1).adapter['w'].tolist() == [5, 5]
  # Round 1 was used, or it was not.
  assert again.state_of(0).adapter['w'].tolist() == [[3, 3]]
  assert again.state_of(-1).adapter['w'].tolist() == [[0, 0]]


def test_what_it_lacks_it_says(begun):
  """A round that changed nothing brings nothing anew: what was sent before is needed, and is not on
  disk. A round that the site never had is lacking anyhow, and so is what it would have kept."""
  first = begun()
  first.keep(b'q', 0, 0, -1, first.received(sent(-1, 1), 0), state(0), state(3), b'answer')
  assert first.received(sent(0, 5), 0).adapter['w'].tolist() == [1, 1]
  for memory, held, changed in ((begun(), 0, 0), (begun(), 3, 1), (first, 3, 1)):
    with pytest.raises(Unanswerable) as error:
      memory.received(sent(held, 5), changed)
    assert error.value.args[0] == LACKS
  with pytest.raises(Unanswerable) as error:
    first.state_of(7)
  assert error.value.args[0] == STATE


def test_an_old_message_does_not_begin_anew(begun):
  """Two rounds were used; then that of the first comes once more."""
  first = begun()
  anchor = first.received(sent(-1, 1), 0)
  first.keep(b'first', 0, 0, -1, anchor, first.state_of(-1), state(3), b'answer')
  first.refuse_old(-1)  # the first of them was not used, as far as the site knows
  first.keep(b'second', 1, 1, 0, anchor, first.state_of(0), state(4), b'answer')
  with pytest.raises(Unanswerable, match='its update of round 1 was used before') as error:
    begun().refuse_old(-1)
  assert error.value.args[0] == STATE
  begun().refuse_old(1)
  assert begun().state_of(1).adapter['w'].tolist() == [[4, 4]]

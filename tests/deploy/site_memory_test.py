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
  first.keep(b'question', 0, 0, -1, anchor, state(3), b'answer')
  again = begun()
  assert again.received(sent(0, 5), 1).adapter['w'].tolist() == [5, 5]
  # Round 1 was used, or it was not.
  assert again.state_of(0).adapter['w'].tolist() == [[3, 3]]
  assert again.state_of(-1).adapter['w'].tolist() == [[0, 0]]


def test_what_it_lacks_it_says(begun):
  """A round that changed nothing brings nothing anew: what was sent before is needed, and is not on
  disk. A round that the site never had is lacking anyhow, and so is what it would have kept."""
  first = begun()
  first.keep(b'q', 0, 0, -1, first.received(sent(-1, 1), 0), state(3), b'answer')
  assert first.received(sent(0, 5), 0).adapter['w'].tolist() == [1, 1]
  for memory, held, changed in ((begun(), 0, 0), (begun(), 3, 1), (first, 3, 1)):
    with pytest.raises(Unanswerable) as error:
      memory.received(sent(held, 5), changed)
    assert error.value.args[0] == LACKS
  with pytest.raises(Unanswerable) as error:
    first.state_of(7)
  assert error.value.args[0] == STATE


def values(memory: Memory, *rounds: int) -> list:
  return [memory.state_of(number).adapter['w'].tolist()[0][0] for number in rounds]


def trained(memory: Memory, number: int, used: int, value: float) -> None:
  """Round `number` is trained from what round `used` left, and leaves `value`."""
  anchor = memory.received(sent(-1, 1), 0)
  memory.state_of(used)
  memory.keep(b'%d' % value, number, number, used, anchor, state(value), b'answer')


def test_a_server_may_go_back_as_many_rounds_as_are_kept(begun):
  """Rounds 0 to 5 leave 0 to 5. The server goes back to after round 2 and plays 3 once more."""
  memory = begun()
  for number in range(6):
    trained(memory, number, number - 1, number)
  assert values(begun(), 2, 3, 4, 5) == [2, 3, 4, 5]
  with pytest.raises(Unanswerable, match='kept of round 2 is not there .* newer copy') as error:
    begun().state_of(1)
  assert error.value.args[0] == STATE
  trained(memory, 3, 2, 30)
  trained(memory, 4, 3, 40)
  assert values(begun(), 3, 4) == [30, 40]


def test_an_old_message_costs_nothing_of_later_rounds(begun):
  """Rounds 2 to 6 were not used, so all of them began from round 1; then old messages come."""
  memory = begun()
  for number, used in ((0, -1), (1, 0), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1)):
    trained(memory, number, used, number)
  trained(begun(), 0, -1, 0)
  trained(begun(), 1, 0, 1)
  assert values(begun(), 1, 6) == [1, 6]
  assert len(list(begun()._kept.folder.glob('state*-*'))) <= 4

"""Messages as bytes: what is written is read again, and what a stranger sends raises nothing."""

import json

import numpy as np
import pytest
import safetensors.numpy

from fedmedjax.deploy import messages
from fedmedjax.deploy.messages import Fault, Message

QUESTION = Message(
  'local_round', 'study', 'icu', 3, 'n1', {'times': 2, 'cohorts': [[0, 1]]},
  {'adapter/b/values': np.arange(6, dtype=np.float32).reshape(2, 3),
   'header/round': np.asarray(3, np.int32), 'adapter/a/codes': np.arange(5, dtype=np.uint8)})


def test_what_is_written_is_read_again():
  """24 bytes of six float32, 4 of the round, 5 codes: 33; all else is frame."""
  data = messages.encode(QUESTION)
  read = messages.decode(data, 33)
  assert read[:6] == QUESTION[:6]
  for name, array in QUESTION.tensors.items():
    np.testing.assert_array_equal(read.tensors[name], array)
    assert read.tensors[name].dtype == array.dtype and read.tensors[name].shape == array.shape
  assert read.payload == 33 and messages.frame_bytes(data) == len(data) - 33
  assert messages.encode(read) == data


def altered(**fields) -> bytes:
  """A message whose JSON is changed; None takes a field out."""
  data = messages.encode(QUESTION)
  header = json.loads(data[8:messages.frame_bytes(data)])
  words = json.loads(header['__metadata__']['fedmedjax']) | fields
  words = {key: value for key, value in words.items() if value is not None}
  return safetensors.numpy.save(dict(QUESTION.tensors), {'fedmedjax': json.dumps(words)})


@pytest.mark.parametrize('data, words', [
  (b'', 'length of its header'), (b'\xff' * 100, 'length of its header'),
  (b'\x05' + bytes(7) + b'[1,2]', 'no message'), (b'\x02' + bytes(7) + b'{}', '__metadata__'),
  (b'\x02' + bytes(7) + b'\xff\xfe', 'no message'),
  (messages.encode(QUESTION)[:-1], 'no message'),
  (messages.encode(QUESTION) + b'0', 'no message'),
  (altered(protocol=2), 'protocol 2, this side speaks 1'), (altered(protocol=None), 'no version'),
  (altered(protocol=True), 'no version'), (altered(round='3'), "'round'"),
  (altered(site=None), "'site'"), (altered(fields=[1]), "'fields'"),
  (altered(fields={'loss': float('nan')}), 'NaN'),
  (altered(round=10**4299), "'round'"), (altered(round=-2), "'round'"),
  (messages.encode(QUESTION._replace(tensors={'a/b\n9,icu:x': np.zeros(1, np.uint8)})), 'commas'),
  (messages.encode(QUESTION._replace(tensors={
    'big': np.zeros(messages.FRAME_LIMIT // 4 + 9, np.float32)})), 'are allowed'),
])
def test_what_is_no_message_is_told_in_one_line(data, words):
  fault = messages.decode(data, 33)
  assert isinstance(fault, Fault) and words in fault.reason
  assert len(fault.reason.splitlines()) == 1


def test_every_truncation_and_changed_byte_is_survived():
  data = messages.encode(QUESTION)
  rng = np.random.default_rng(0)
  for _ in range(300):
    broken = bytearray(data[:rng.integers(len(data))] if rng.random() < 0.5 else data)
    for place in rng.integers(len(broken), size=2) if broken else ():
      broken[place] = rng.integers(256)
    assert isinstance(messages.decode(bytes(broken), 33), Fault | Message)


def test_numbers_and_words_of_strangers():
  """A whole number of 400 digits is no float; half a pair of surrogates cannot be written."""
  fields = {'a': 1.5, 'b': True, 'c': 'x', 'd': float('inf'), 'e': 10**400, 'f': float('nan')}
  assert [messages.number(fields, name) for name in 'abcdefg'] == [1.5, *[None] * 6]
  assert messages.shown('\x1b[31mno\n\ud800 memory') == '[31mno memory'
  assert messages.shown([1]) == '' and len(messages.shown('x' * 999)) == 300

"""Label names and records of a token classifier that is planted, and the memory of its batch."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedmedjax.data.labels import LabelExample, label_names
from fedmedjax.data.site import SiteData, TaskData
from fedmedjax.data.tasks import ask
from fedmedjax.eval import tagging
from fedmedjax.types import Example, SiteCorpus, Span

LABELS = label_names(('problem', 'drug'))  # O, B-problem, I-problem, B-drug, I-drug
CORPUS = SiteCorpus('ward', ('problem', 'drug'), (), (), {}, {'problem': ('severity',)})


def window(*words: tuple[int, int], first: int = 0, more: int = 0) -> LabelExample:
  """Words of one token, numbered from `first`, between two special tokens; `more` tokens behind."""
  number = len(words)
  tokens = np.asarray([99, *range(first, first + number), *[98] * (1 + more)], np.int32)
  return LabelExample(
    tokens, np.arange(1, number + 1), np.zeros(number, np.int32), np.asarray(words))


# 'Bad pain today' at character 40 of its note, the first two words in one window, and a short one.
LONG = Example('n1', 40, 'Bad pain today', (Span(4, 8, 'problem'),))
SHORT = Example('n2', 0, 'Aspirin', (Span(0, 7, 'drug'),))
PART = TaskData(
  ask('ner', CORPUS), np.zeros(1, np.int32), (), (), (LONG, SHORT), (
    (window((0, 3), (4, 8)), window((9, 14), first=2)), (window((0, 7), first=3, more=40),)))


@pytest.fixture
def planted(monkeypatch):
  """Labels of tokens 0 to 3: B-problem, I-problem, O, B-drug. Gives the batches that were asked."""
  asked = []

  def classifier(model, logits):
    def best(adapter, base, batch):
      asked.append(batch)
      return np.asarray([1, 2, 0, 3, *[0] * 96])[batch.tokens]

    return best

  monkeypatch.setattr(tagging, '_classifier', classifier)
  return asked


@pytest.mark.parametrize('rows', [1, 2, 4])
def test_windows_are_joined_in_the_order_of_the_examples(rows, planted):
  """The longest window goes first; each example has its words' labels, whatever the batches."""
  done = []
  tagger = tagging.Tagger(None, LABELS, 48, rows)
  assert tagging.tag(tagger, {}, {}, PART, done.append) == [
    ['B-problem', 'I-problem', 'O'], ['B-drug']]
  assert sum(done) == 2 and len(done) == -(-3 // rows)
  # 43 tokens are padded to 48, the longest that a window may be; 4 to 32.
  assert [batch.tokens.shape for batch in planted] == [
    (rows, 48), *[(rows, 32)] * (len(planted) - 1)]
  assert all(batch.allowed.tolist() == [True] * 5 for batch in planted)


def test_a_classifier_takes_the_likeliest_label_and_is_compiled_once():
  """Of two windows of three tokens and four labels."""
  def given(model, adapter, base, batch):
    return batch

  classifier = tagging._classifier('a model', given)
  labels = np.array([[0, 3, 1], [2, 2, 0]])
  assert classifier({}, {}, np.eye(4)[labels]).tolist() == labels.tolist()
  assert tagging._classifier('a model', given) is classifier


def test_records_by_hand(planted):
  """Offsets are into the document: 40 is added to those of the first sentence."""
  tagger = tagging.Tagger(None, LABELS, 48, 4)
  records = tagging.answer(
    tagger, {}, {}, SiteData('ward', CORPUS.types, (PART,), {}), lambda count: None)
  assert records == [
    {'document': 'n1', 'sentence_start': 40, 'task': 'ner', 'model_input': 'Bad pain today',
     'generated': 'B-problem I-problem O', 'predicted': [[40, 48, 'problem']],
     'gold': [[44, 48, 'problem']], 'parse_failed': False, 'copied': True, 'dropped': 0},
    {'document': 'n2', 'sentence_start': 0, 'task': 'ner', 'model_input': 'Aspirin',
     'generated': 'B-drug', 'predicted': [[0, 7, 'drug']], 'gold': [[0, 7, 'drug']],
     'parse_failed': False, 'copied': True, 'dropped': 0}]


def test_the_memory_of_the_widest_batch_by_hand(planted):
  """4 bytes, 2 rows, 48 tokens: 64 intermediate states and attention of 2 heads to 48 tokens,
  4 * 2 * 48 * (64 + 96) = 61,440. The batch: tokens, labels and weights of 4 bytes, one of 1, and 5
  labels: 2 * 48 * 13 + 5 = 1,253; the adapter 12."""
  model = SimpleNamespace(config=SimpleNamespace(intermediate_size=64, num_heads=2))
  site = SiteData('ward', CORPUS.types, (PART,), {})
  program = tagging.largest_call(
    tagging.Tagger(model, LABELS, 48, 2), {}, {'w': np.zeros(3, np.float32)}, [site])
  assert program[-1] == 61_440 and program[-2] == 1_253 + 12

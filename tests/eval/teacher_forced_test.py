"""Entities by teacher forcing, worked by hand with planted choices."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
import transformers

from fedmedjax.data.pack import plan_shape
from fedmedjax.data.site import encode_site
from fedmedjax.eval import paired, teacher_forced
from fedmedjax.eval.evaluate import source_counts
from fedmedjax.experiment.config import validate
from fedmedjax.experiment.defaults import get_config
from fedmedjax.experiment.reading import Reading
from fedmedjax.runtime.processes import ALONE
from fedmedjax.train.scoring import forced_all, forced_shown
from fedmedjax.types import Document, InputError, SiteCorpus, Span

# Pieces of tags, words, blanks and single marks are tokens.
_PIECE = r'<span class="|">|</span>|\w+|\s|.'
OPEN, TYPED, CLOSE, END = '<span class="', '">', '</span>', '<end>'
TEXT = 'no fever or chest pain x-ray'
FEVER, PAIN = Span(3, 8, 'problem'), Span(12, 22, 'problem')
# Where the right answer has what:
#  0 no  1 _  2 OPEN  3 problem  4 TYPED  5 fever  6 CLOSE  7 _  8 or  9 _  10 OPEN  11 problem
#  12 TYPED  13 chest  14 _  15 pain  16 CLOSE  17 _  18 x  19 -  20 ray  21 END
WORDS = (
  'no', 'fever', 'or', 'chest', 'pain', 'x', '-', 'ray', 'problem', 'drug', ' ', 'aspirin', '(',
  ')', 'ra', 'y')


@pytest.fixture(scope='module')
def tokenizer():
  pieces = ('?', OPEN, TYPED, CLOSE, END, *WORDS)
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(
    {piece: number for number, piece in enumerate(pieces)}, unk_token='?'))
  # As Llama's, it begins a text with a token of its own unless it is asked not to.
  backend.post_processor = tokenizers.processors.TemplateProcessing('? $A', None, [('?', 0)])
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(_PIECE), 'isolated')
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, eos_token=END, unk_token='?')


def ward(tokenizer, *notes: Document):
  """A site of two types that is tested on these notes."""
  return encode_site(
    SiteCorpus('ward', ('problem', 'drug'), (), notes, {}), tokenizer, max_length=200, trains=False)


@pytest.fixture(scope='module')
def site(tokenizer):
  return ward(
    tokenizer, Document('a', TEXT, (FEVER, PAIN), (), 'one'),
    Document('b', 'aspirin', (Span(0, 7, 'drug'),), (), 'two'),
    Document('c', 'no fever', (FEVER,), (), 'one'))


def token(tokenizer, piece: str) -> int:
  (number,) = tokenizer(piece, add_special_tokens=False)['input_ids'] if piece != END else (
    tokenizer.eos_token_id,)
  return number


@pytest.mark.parametrize('planted, found', [
  ({}, [FEVER, PAIN]),
  # The word instead of its tag: not opened. A tag that breaks off is none, either.
  ({2: 'fever'}, [PAIN]), ({4: 'fever'}, [PAIN]),
  # Another type's name.
  ({3: 'drug'}, [FEVER._replace(type='drug'), PAIN]),
  # Not closed: a word longer. The last of a sentence would have ended with it.
  ({6: ' '}, [Span(3, 11, 'problem'), PAIN]), ({16: ' '}, [FEVER, Span(12, 24, 'problem')]),
  # Closed after 'chest'; closed, or another opened, at once: no word is left of it.
  ({14: CLOSE}, [FEVER, Span(12, 17, 'problem')]), ({13: CLOSE}, [FEVER]), ({13: OPEN}, [FEVER]),
  # Begun where none is, at a word; in front of a blank or at the end there is nothing to mark.
  ({8: OPEN}, [FEVER, Span(9, 11, 'problem'), PAIN]), ({7: OPEN}, [FEVER, PAIN]),
  ({21: OPEN}, [FEVER, PAIN]),
  # Neighbours are one, across a word that was right they are two.
  ({18: OPEN, 19: OPEN}, [FEVER, PAIN, Span(23, 25, 'problem')]),
  ({18: OPEN, 20: OPEN}, [FEVER, PAIN, Span(23, 24, 'problem'), Span(25, 28, 'problem')]),
  # Nothing was open; a word was copied wrongly; the answer ended too soon.
  ({18: CLOSE}, [FEVER, PAIN]), ({0: 'pain', 5: 'pain'}, [FEVER, PAIN]), ({17: END}, [FEVER, PAIN]),
])
def test_choices_become_entities(tokenizer, site, planted, found):
  (part,) = site.tasks
  tokens = part.test_tokens[0]
  chosen = np.array(tokens.tokens[tokens.prompt_length:])
  assert len(chosen) == 22
  for place, piece in planted.items():
    chosen[place] = token(tokenizer, piece)
  assert teacher_forced.forced_spans(tokenizer, part, part.test[0], tokens, chosen) == found


BRACED = Document('d', '(fever) or x-ray', (Span(1, 6, 'problem'), Span(13, 15, 'problem')), ())


@pytest.mark.parametrize('planted, found', [
  # 0 (  1 OPEN  2 problem  3 TYPED  4 fever  5 CLOSE  6 )  7 _  8 or  9 _  10 x  11 -  12 OPEN
  # 13 problem  14 TYPED  15 ra  16 CLOSE  17 y  18 END
  # What touches an entity is not part of it.
  ({0: OPEN, 6: OPEN}, [(0, 1), (1, 6), (6, 7), (13, 15)]),
  # Not closed in the middle of a word: to the word's end.
  ({16: ' '}, [(1, 6), (13, 16)]),
  # Another tag begun where it should have been closed does not close it.
  ({16: OPEN}, [(1, 6), (13, 16)]),
  # A number that the tokenizer does not know is a wrong token.
  ({4: None, 12: None}, [(1, 6)]),
])
def test_neighbours_of_entities(tokenizer, planted, found):
  (part,) = ward(tokenizer, BRACED).tasks
  (example,), (tokens,) = part.test, part.test_tokens
  chosen = np.array(tokens.tokens[tokens.prompt_length:])
  assert len(chosen) == 19
  for place, piece in planted.items():
    chosen[place] = 1_000 if piece is None else token(tokenizer, piece)
  shown = teacher_forced.forced_spans(tokenizer, part, example, tokens, chosen)
  assert [(span.start, span.end) for span in shown] == found


def test_other_answers_than_markups_are_refused(tokenizer, site):
  """Those of another sentence, and those that another function has written."""
  (part,) = site.tasks
  chosen = np.zeros(22, np.int32)
  for number in (1, 2):
    with pytest.raises(ValueError, match='span markup'):
      teacher_forced.forced_spans(tokenizer, part, part.test[0], part.test_tokens[number], chosen)
  for text in ('', 'zzz'):
    other = part._replace(ask=part.ask._replace(render=lambda example, text=text: ('', text)))
    with pytest.raises(ValueError, match='span markup'):
      teacher_forced.forced_spans(tokenizer, other, part.test[0], part.test_tokens[0], chosen)


def test_passes_are_planned_for_entities_alone(tokenizer, site):
  """Of two tasks of two sites, one of which has no test sentences, only (site, entities) counts."""
  (part,) = site.tasks
  # Without its last token an instruction of 33 fits into 32, the next step of shapes being 48.
  one = part._replace(
    test=part.test[:2], test_tokens=part.test_tokens[:2], instruction=np.zeros(33, np.int32))
  relations = part._replace(
    ask=part.ask._replace(task='re'), instruction=np.zeros(500, np.int32))
  links = relations._replace(ask=part.ask._replace(task='links'))
  empty = part._replace(test=(), test_tokens=(), instruction=np.zeros(900, np.int32))
  sites = (site._replace(tasks=(links, one, relations)), site._replace(tasks=(empty,)))
  found = teacher_forced.forcer(None, tokenizer, sites, 2)
  assert found.shape == plan_shape([list(one.test_tokens)], 32, 'completion')
  assert found.batch_size == 2
  assert teacher_forced.forcer(None, tokenizer, sites[1:], 2) is None
  assert teacher_forced.forced_scores(found, {}, {}, sites[1], None) is None
  # Both sentences are read, in one pass, and none of another task.
  asked = found._replace(choices=lambda adapter, base, batch: batch.targets)
  done = []
  scores = teacher_forced.forced_scores(asked, {}, {}, sites[0], done.append)
  assert list(scores.scores) == ['ner'] and done == [2]


def scores(tokenizer, site, choose):
  """Two sentences a pass; `choose` is (batch) -> its choices."""
  (part,) = site.tasks
  shape = plan_shape([list(part.test_tokens)], len(part.instruction) - 1, 'completion')
  forcer = teacher_forced.Forcer(lambda adapter, base, batch: choose(batch), tokenizer, 2, shape)
  done = []
  found = teacher_forced.forced_scores(forcer, {}, {}, site, done.append)
  assert sorted(done) == [1, 2]
  assert (found.copy_rate, found.parse_failure_rate, found.dropped) == (1, 0, 0)
  return found


def test_perfect_choices_have_an_f1_of_one(tokenizer, site):
  found = scores(tokenizer, site, lambda batch: batch.targets)
  typed = forced_shown({'ward': found})['ward']['ner']
  assert typed['strict'] == typed['lenient'] == {'precision': 1.0, 'recall': 1.0, 'f1': 1.0}


def test_planted_mistakes_are_counted_by_source(tokenizer, site):
  """Aspirin is called a problem, all else is right: source two has one wrong and one missed
  entity, source one its three right ones. P = R = 3 / 4."""
  drug, problem = (token(tokenizer, name) for name in ('drug', 'problem'))
  found = scores(
    tokenizer, site, lambda batch: np.where(batch.targets == drug, problem, batch.targets))
  assert forced_shown({'ward': found})['ward']['ner']['strict']['f1'] == 0.75
  answers = paired._answers(source_counts({'ward': found}))['ward']['ner']
  assert answers.sources == ('one', 'two')
  assert answers.counts[:, 0, :2].sum(1).tolist() == [[3, 0, 0], [0, 1, 1]]


def test_adapters_of_sites_are_added_and_known_one_by_one(tokenizer, site):
  """The right adapter finds all 4, the other none: together 4 of 8 with 4 missed, F1 2/3."""
  def forced(adapter, site, advance):
    return scores(tokenizer, site, (lambda batch: batch.targets) if adapter else (
      lambda batch: np.zeros_like(batch.targets)))

  study = SimpleNamespace(
    trainable=SimpleNamespace(forced=forced), processes=ALONE, spread=None,
    data=SimpleNamespace(tested=(site,), external=(), reading=Reading()))
  reporter = SimpleNamespace(task=lambda *rest: nullcontext(lambda *more: None))
  together, crossed = forced_all(study, {'icu': True, 'er': False}, reporter, cross=True)
  assert forced_shown(together)['ward']['ner']['strict']['f1'] == pytest.approx(2 / 3)
  assert forced_shown(crossed['er'])['ward']['ner']['strict']['recall'] == 0
  study.trainable.forced = None
  assert forced_all(study, {}, reporter) == ({}, {})


@pytest.mark.parametrize('keys', [
  {'data.style': 'json'}, {'data.tasks': ('re',)}, {'data.chat': True}])
def test_answers_that_are_not_read_are_refused(keys):
  config = get_config()
  config.update_from_flattened_dict(keys | {'eval.teacher_forced': True})
  with pytest.raises(InputError, match='config.eval.teacher_forced=True: .*; use False'):
    validate(config)

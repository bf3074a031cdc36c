"""Token labels: where they stand, that spans come back from them, and the steps of a site."""

import numpy as np
import pytest
import tokenizers
import transformers

from fedmedjax.data import label_steps
from fedmedjax.data import labels as token_labels
from fedmedjax.data import schedule as schedules
from fedmedjax.data.synthetic.cohorts import COHORTS, generate_cohort
from fedmedjax.data.tasks import ask
from fedmedjax.types import ENTITY_TYPES, PAPER, Example, InputError, SiteCorpus, Span

NER = token_labels.label_names(ENTITY_TYPES)
RE = token_labels.label_names(PAPER.kinds)
PIECES = [
  '[PAD]', '[UNK]', '[CLS]', '[SEP]', 'no', 'chest', 'pain', 'hyper', '##tension', '##s', 'on',
  'met', '##form', '##in', '500', 'mg', '.', ',', '@', '*', 'problem', 'severe']
CLS, SEP = 2, 3


@pytest.fixture(scope='module')
def tokenizer():
  """WordPiece over a few pieces; every other word is [UNK], one token."""
  backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(
    {piece: i for i, piece in enumerate(PIECES)}, unk_token='[UNK]'))
  backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
  backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, cls_token='[CLS]', sep_token='[SEP]', pad_token='[PAD]',
    unk_token='[UNK]')


def ids(text):
  return [PIECES.index(piece) for piece in text.split()]


def encode(tokenizer, example, labels=NER, max_length=64):
  windows, counts = token_labels.encode_labels(tokenizer, [example], labels, max_length)
  return windows[0], counts


def found(windows, labels):
  """The spans that the windows' own labels mean."""
  tags = [labels[tag] for window in windows for tag in window.labels]
  return token_labels.spans(tags, [word for window in windows for word in window.words])


TEXT = 'Hypertensions, no chest pain on metformin 500 mg.'
ENTITIES = (Span(0, 13, 'problem'), Span(18, 28, 'problem'), Span(32, 41, 'drug'))


def test_labels_stand_on_first_sub_tokens(tokenizer):
  """hyper ##tension ##s , no chest pain on met ##form ##in 500 mg .: ten words, 14 tokens."""
  (window,), counts = encode(tokenizer, Example('n', 0, TEXT, ENTITIES))
  assert window.tokens.tolist() == [
    CLS, *ids('hyper ##tension ##s , no chest pain on met ##form ##in 500 mg .'), SEP]
  # [CLS] is place 0, so 'hyper' is at 1, ',' at 4 and 'met' at 9.
  assert window.places.tolist() == [1, 4, 5, 6, 7, 8, 9, 12, 13, 14]
  assert [NER[tag] for tag in window.labels] == [
    'B-problem', 'O', 'O', 'B-problem', 'I-problem', 'O', 'B-drug', 'O', 'O', 'O']
  assert [TEXT[a:b] for a, b in window.words[:4]] == ['Hypertensions', ',', 'no', 'chest']
  assert found([window], NER) == ENTITIES
  assert counts == {'cut_sentences': 0, 'unlabelled': 0}
  batch = label_steps.label_batch([window], 2, 20, np.ones(len(NER), bool))
  assert batch.weight.sum() == 10 and batch.valid.sum() == 16
  assert np.flatnonzero(batch.weight[0]).tolist() == window.places.tolist()
  assert NER[batch.labels[0, 9]] == 'B-drug' and not batch.weight[1].any()


@pytest.mark.parametrize('tags, expected', [
  ('O I-a I-a O', [(1, 3, 'a')]),                       # I without B starts a span
  ('B-a I-b I-b O', [(0, 1, 'a'), (1, 3, 'b')]),        # another type ends one
  ('B-a B-a I-a O', [(0, 1, 'a'), (1, 3, 'a')]),        # B always starts one
  ('I-a O I-a B-b', [(0, 1, 'a'), (2, 3, 'a'), (3, 4, 'b')]),
])
def test_spans_of_labels(tags, expected):
  words = [(i, i + 1) for i in range(4)]
  assert token_labels.spans(tags.split(), words) == tuple(Span(*span) for span in expected)


def test_the_main_entity_is_marked_in_the_input(tokenizer):
  """Its modifiers are labelled, also one inside it; the marker carries no label."""
  text = 'No severe chest pain.'
  modifiers = (Span(0, 2, 'negation'), Span(3, 9, 'severity'), Span(10, 15, 'bodyloc'))
  example = Example('n', 0, text, modifiers, Span(10, 20, 'problem'))
  (window,), _ = encode(tokenizer, example, RE)
  assert token_labels.marked_text(example) == 'No severe @ * problem * chest pain @.'
  assert window.tokens.tolist() == [
    CLS, *ids('no severe @ * problem * chest pain @ .'), SEP]
  assert window.places.tolist() == [1, 2, 7, 8, 10]
  assert [text[a:b] for a, b in window.words] == ['No', 'severe', 'chest', 'pain', '.']
  assert found([window], RE) == modifiers


def test_a_cut_between_words_loses_no_entity(tokenizer):
  """Room for five tokens: 'chest pain' is divided, 'metformin' (3 tokens) is not."""
  windows, counts = encode(tokenizer, Example('n', 0, TEXT, ENTITIES), max_length=7)
  assert [window.tokens.tolist()[1:-1] for window in windows] == [
    ids('hyper ##tension ##s , no'), ids('chest pain on'), ids('met ##form ##in 500 mg'), ids('.')]
  assert found(windows, NER) == ENTITIES and counts['cut_sentences'] == 1
  windows, _ = encode(
    tokenizer, Example('n', 0, 'no chest pain', (Span(3, 13, 'problem'),)), max_length=4)
  assert [[NER[tag] for tag in w.labels] for w in windows] == [['O', 'B-problem'], ['I-problem']]
  assert found(windows, NER) == (Span(3, 13, 'problem'),)


def test_a_long_relation_example_keeps_what_surrounds_its_main_entity(tokenizer):
  """Marker and entity take 7 tokens; 10 are left room for: three words around, nearest first."""
  text = 'no ' * 20 + 'severe chest pain on ' + 'no ' * 20
  main = Span(67, 77, 'problem')
  assert text[main.start:main.end] == 'chest pain'
  modifiers = (Span(0, 2, 'negation'), Span(60, 66, 'severity'))
  (window,), counts = encode(tokenizer, Example('n', 0, text, modifiers, main), RE, max_length=12)
  assert window.tokens.tolist()[1:-1] == ids('severe @ * problem * chest pain @ on no')
  assert found([window], RE) == modifiers[1:]
  assert counts == {'cut_sentences': 1, 'unlabelled': 1}
  # A main entity longer than the window is cut itself.
  whole = Example('n', 0, 'pain ' * 30, (), Span(0, 150, 'problem'))
  (window,), _ = encode(tokenizer, whole, RE, max_length=12)
  assert len(window.tokens) == 12


def test_two_entities_of_one_word(tokenizer):
  """The word is the first one's; the other is counted, and stays in the gold annotation."""
  windows, counts = encode(
    tokenizer, Example('n', 0, '500mg', (Span(0, 3, 'test'), Span(3, 5, 'drug'))))
  assert found(windows, NER) == (Span(0, 5, 'test'),) and counts['unlabelled'] == 1


@pytest.mark.parametrize('name', COHORTS)
def test_cohorts_round_trip_and_a_shift_by_one_does_not(name, tokenizer):
  """What is labelled comes back, save where an entity ends inside a word; planted: a shift."""
  corpus = generate_cohort(name, seed=1)
  for task, labels in (('ner', NER), ('re', RE)):
    examples = [
      example for note in (*corpus.train, *corpus.test)
      for example in ask(task, corpus).find(note)[0]]
    encoded, _ = token_labels.encode_labels(tokenizer, examples, labels, 128)
    gold = sum(len(example.entities) for example in examples)
    right = sum(
      len(set(found(windows, labels)) & set(example.entities))
      for windows, example in zip(encoded, examples, strict=True))
    shifted = sum(
      len({*found([w._replace(labels=np.roll(w.labels, 1)) for w in windows], labels)}
          & {*example.entities})
      for windows, example in zip(encoded, examples, strict=True))
    assert gold > 50 and right > 0.97 * gold, (task, right, gold)
    assert shifted < 0.1 * gold


def corpus(name, types, relations=True):
  made = generate_cohort(name, seed=0)
  notes = [
    note if relations else note._replace(relations=()) for note in (*made.train, *made.test)]
  return SiteCorpus(name, types, tuple(notes[:-2])[:8], tuple(notes[-2:]), {})


def test_sites_and_steps(tokenizer):
  """Fixed shapes, a site's own labels allowed, every training window once an epoch."""
  encode_site = lambda name, types, **kwargs: label_steps.encode_label_site(  # noqa: E731
    corpus(name, types), tokenizer, task='ner', labels=NER, max_length=40, validation_share=0.2,
    validation_examples=3, **kwargs)
  sites = (
    encode_site('synthetic_icu', ENTITY_TYPES), encode_site('synthetic_clinic', ('test', 'drug')))
  schedule = label_steps.label_schedule(
    sites, schedules.site_sizes(sites, 'examples', len), labels=NER, max_length=40, batch_size=8,
    pooled=False, rounds=2, local_steps=0, local_epochs=1, seed=0)
  assert schedule.weights.tolist() == [len(site.train) for site in sites]
  batches, mask = schedules.round_arrays(schedule, 0)
  assert batches.tokens.shape[:3] == (*mask.shape, 8) and batches.tokens.shape[3] <= 40
  allowed = [[NER[i] for i in np.flatnonzero(one)] for one in batches.allowed[:, 0]]
  assert allowed == [list(NER), ['O', 'B-test', 'I-test', 'B-drug', 'I-drug']]
  for c, site in enumerate(sites):
    words = sum(len(window.places) for window in site.train)
    assert batches.weight[c].sum() == words
    # Nothing supervised is forbidden: an infinite loss.
    assert batches.allowed[c, 0][batches.labels[c]].all()
  assert not batches.weight[~mask].any()
  validation, group, *_ = schedules.validation_arrays(schedule)
  assert group.tolist() == [[0, 1], [1, 0]] and validation.tokens.shape[1:] == (
    batches.tokens.shape[2:])
  by_tokens = schedules.site_sizes(sites, 'tokens', lambda example: len(example.places))
  by_words = label_steps.label_schedule(
    sites, by_tokens, labels=NER, max_length=40, batch_size=8, pooled=True,
    rounds=1, local_steps=0, local_epochs=1, seed=0)
  assert by_words.weights.tolist() == [batches.weight.sum()]
  drawn = label_steps.label_schedule(
    sites, by_tokens, labels=NER, max_length=40, batch_size=8, pooled=False,
    rounds=2, local_steps=3, local_epochs=1, seed=0,
    cohorts=[[int(by_tokens.argmax())], [int(by_tokens.argmin())]])
  order = np.argsort(-drawn.weights)
  assert [[len(one) for one in steps] for steps in drawn.plan] == [
    [3 * (site == place) for site in (0, 1)] for place in order]
  assert not schedules.round_arrays(drawn, 0, order, (3, 0))[0].weight[1].any()


def test_test_windows_carry_no_gold(tokenizer):
  """Answers cannot leak, and a type that no training site has is no error."""
  site = label_steps.encode_label_site(
    corpus('synthetic_external', ENTITY_TYPES), tokenizer, task='ner',
    labels=token_labels.label_names(('drug',)), max_length=40, trains=False, max_test=9)
  (part,) = site.tasks
  assert len(part.test) == len(part.test_tokens) == 9 and not site.train
  assert any(example.entities for example in site.test)
  assert not any(window.labels.any() for one in part.test_tokens for window in one)


def test_a_site_without_annotated_modifiers_is_refused(tokenizer):
  """Its words would be taught as modifying nothing."""
  with pytest.raises(InputError, match="'synthetic_icu': its 8 notes hold nothing of task 're'"):
    label_steps.encode_label_site(
      corpus('synthetic_icu', ENTITY_TYPES, relations=False), tokenizer, task='re', labels=RE,
      max_length=40)


def test_text_without_words(tokenizer):
  windows, _ = token_labels.encode_labels(tokenizer, [Example('n', 0, '\u200b', ())], NER, 16)
  assert windows == [()] and token_labels.encode_labels(tokenizer, [], NER, 16)[0] == []

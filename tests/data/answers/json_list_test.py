"""Answers as a JSON list: where listed texts stand, and what is saved of broken lists."""

import json

import pytest

from fedmedjax.data.answers import json_list
from fedmedjax.data.formats.corpora import load_corpus
from fedmedjax.data.tasks import ask
from fedmedjax.types import ENTITY_TYPES, Span


def listed(*entries: tuple[str, str]) -> str:
  return json.dumps([{'entity': kind, 'text': words} for kind, words in entries])


def parsed(generated: str, text: str, types=ENTITY_TYPES):
  """(words, start, type) of each entity, failed, copied, dropped."""
  spans, *rest = json_list.parse(generated, text, types)
  return [(text[s.start:s.end], s.start, s.type) for s in spans], *rest


def test_write():
  text = 'No "mild" rash\r\non aspirin'
  target = json_list.write(text, (Span(3, 14, 'problem'), Span(19, 26, 'drug')))
  assert target == (
    '[{"entity": "problem", "text": "\\"mild\\" rash"}, {"entity": "drug", "text": "aspirin"}]')
  assert json_list.write(text, ()) == '[]'
  assert json_list.shown('drug', 'aspirin') == '{"entity": "drug", "text": "aspirin"}'


def test_what_stands_once_holds_the_others_in_order():
  """'25 mg' stands once, so the route that is listed after it is the second one."""
  text = 'aspirin 10 mg po daily, heparin 25 mg po daily'
  entries = ('strength', '25 mg'), ('route', 'po'), ('frequency', 'daily')
  got, *_ = parsed(listed(*entries), text, ('strength', 'route', 'frequency'))
  assert [start for _, start, _ in got] == [32, 38, 41]


def test_words_that_stand_several_times_go_nearest_to_the_main_entity():
  """The second 'no' ends 1 character before the fever, the third begins 2 behind it; the third is
  nearest to the rash. Of several that are listed some go farther away."""
  text = 'no pain today, no fever, no known cause of rash'
  fever, rash = Span(18, 23, 'problem'), Span(43, 47, 'problem')

  def places(words: str, near: Span | None, times: int = 1) -> list[int]:
    written = listed(*[('negation', words)] * times)
    return [s.start for s in json_list.parse(written, text, ('negation',), near).spans]

  assert [places('no', near) for near in (None, fever, rash)] == [[0], [15], [25]]
  assert places('no', rash, 2) == [15, 25] and places('no', fever, 3) == [0, 15, 25]
  # Equally far, as in the main entity itself: the left one.
  assert places('no', Span(0, 47, 'problem')) == [0]


def test_gold_modifiers_are_read_back_where_they_stand(data_folder):
  """Of a real corpus's lists of modifiers nearly all come back whole, far more than leftmost."""
  corpus = load_corpus('maccrobat2020', data_folder)
  asked, read, leftmost, total = ask('re', corpus, 'json'), 0, 0, 0
  for note in corpus.test:
    for example in asked.find(note)[0]:
      answer = asked.render(example)[1]
      read += asked.parse(answer, example).spans == example.entities
      leftmost += json_list.parse(answer, example.text, asked.types).spans == example.entities
      total += 1
  assert total > 900 and read / total > 0.987 and (total - leftmost) > 5 * (total - read)


def test_mentions_of_the_same_words_go_left_to_right_between_their_neighbours():
  """The second 'pain' is the entity here, since it is listed after the fever; of two listed, both
  are; a third stands nowhere."""
  text = 'pain at rest, fever, no pain'
  assert parsed(listed(('problem', 'fever'), ('problem', 'pain')), text)[0] == [
    ('fever', 14, 'problem'), ('pain', 24, 'problem')]
  twice = [('problem', 'pain'), ('problem', 'pain')]
  assert [start for _, start, _ in parsed(listed(*twice), text)[0]] == [0, 24]
  got, failed, copied, dropped = parsed(listed(*twice, ('problem', 'pain')), text)
  assert (len(got), failed, copied, dropped) == (2, True, True, 1)


# Nothing here costs an entity that is right.
@pytest.mark.parametrize('text, entries, entities', [
  # Out of order: the order is given up where it cannot be kept.
  ('fever, cough and chest pain', ['chest pain', 'cough', 'fever'], [0, 7, 17]),
  # A word that stands in the only place of another, listed out of order, goes to its own.
  ('hypoxemia, FEV1/FVC, FEV1', ['FEV1/FVC', 'hypoxemia', 'FEV1'], [0, 11, 21]),
  # Made up, before, between and after.
  ('fever and chest pain', ['rash', 'fever', 'rash', 'chest pain', 'rash'], [0, 10]),
  # A part of another entity listed too, before or after it: the longer one stays.
  ('had chest pain', ['pain', 'chest pain'], [4]),
  ('had chest pain', ['chest pain', 'chest'], [4]),
  # 'rash' stands in 'rashly' too: whole words first, parts of words if there is nothing else.
  ('rashly left, a rash', ['rash'], [15]),
  ('had hypertension', ['tension'], [9]),
  # Case, and how much of what kind of white space.
  ('Chest\r\n  pain', ['chest pain'], [0]),
  ('ECG', [' ecg '], [0]),
])
def test_places(text, entries, entities):
  got, _, _, dropped = parsed(listed(*(('problem', words) for words in entries)), text)
  assert [start for _, start, _ in got] == entities
  assert dropped == len(entries) - len(entities)


RIGHT = '{"entity": "problem", "text": "rash"}'
DRUG = '{"entity": "drug", "text": "aspirin"}'


# What is no list is read as far as whole objects go, and reported.
@pytest.mark.parametrize('generated, entities', [
  (f'[{RIGHT}, {DRUG}', 'rash aspirin'),                            # left open
  (f'[{RIGHT}, {{"entity": "drug", "text": "aspi', 'rash'),         # cut off
  (f'[{RIGHT}, {{"entity": "drug"}}, {DRUG}]', 'rash aspirin'),     # an entry without a text
  (f'[{RIGHT}, 7, null, [{DRUG}]]', 'rash aspirin'),                # other things in the list
  (f'[{RIGHT[:-2]}}}, {DRUG}]', 'aspirin'),                         # a quote missing
  (f'{RIGHT}{DRUG}', 'rash aspirin'),                               # no list
  (f'[{RIGHT} {DRUG},]', 'rash aspirin'),                           # commas
  (f'Here you are: [{RIGHT}, {DRUG}]. Ask me more!', 'rash aspirin'),
  (f'[{RIGHT}, {DRUG}]\n[{RIGHT}]', 'rash aspirin'),                # goes on: one rash, one place
  ("[{'entity': 'problem', 'text': 'rash'}, {'text': 'aspirin', 'entity': 'drug'}]",
   'rash aspirin'),
  (f'{{"entities": [{RIGHT}, {DRUG}]}}', 'rash aspirin'),
  (f'[{{"entity": "problem", "text": {RIGHT}}}]', 'rash'),          # nested
  ('[' * 20_000 + RIGHT, 'rash'),                                   # deeper than Python recurses
  ('', ''), ('no entities', ''), ('null', ''), ('"rash"', ''), ('{"entity": "problem"', ''),
])
def test_what_is_no_list_is_repaired_and_reported(generated, entities):
  got, failed, copied, _ = parsed(generated, 'rash after aspirin')
  assert [words for words, _, _ in got] == entities.split()
  assert failed and not copied


def test_a_list_may_stand_in_a_fence_and_name_other_types():
  for generated in (f'```json\n[{RIGHT}]\n```', f' [{RIGHT}] \n', f'[{RIGHT}, {DRUG}]',
                    '[{"text": "rash", "entity": "Problem", "why": 1}]'):
    assert parsed(generated, 'rash after aspirin', ('problem',)) == (
      [('rash', 0, 'problem')], False, True, 0)
  assert parsed('[]', 'rash') == ([], False, True, 0)


def test_output_longer_than_is_read(monkeypatch):
  monkeypatch.setattr(json_list, '_LONGEST', len(RIGHT) + 2)
  monkeypatch.setattr(json_list, '_PER_CHARACTER', 0)
  assert parsed(f'[{RIGHT}]', 'rash')[1:] == (False, True, 0)
  assert parsed(f'[{RIGHT}, {DRUG}]', 'rash aspirin') == (
    [('rash', 0, 'problem')], True, False, 0)

"""Offsets that do not count the characters of the text, and quoted words that tell where to look.

Every expected range is that of a word in the text, which the test finds by itself; the offsets are
lengths of what a tool would have had before the word.
"""

import html
import json
import re
import unicodedata
from collections import Counter

import pytest

from fedmedjax.data.formats.quoted_words import occurrences
from fedmedjax.data.formats.readers import FORMATS, read_notes
from fedmedjax.types import InputError, Span

# What a tool counted -> the length of what stands before a place, for it.
COUNTED = {
  'characters': len,
  'utf16': lambda before: len(before.encode('utf-16-le')) // 2,
  'bytes': lambda before: len(before.encode()),
  'escaped': lambda before: len(html.escape(before, quote=False)),
  'decomposed': lambda before: len(unicodedata.normalize('NFD', before)),
  'one sign a line end': lambda before: len(before.replace('\r\n', '\n')),
  'two signs a line end': lambda before: len(re.sub('(?<!\r)\n', '\r\n', before)),
  'no line ends': lambda before: len(re.sub('[\r\n]', '', before)),
  'blanks once': lambda before: len(re.sub(r'[ \t\xa0]+', ' ', before)),
  'white space once': lambda before: len(re.sub(r'\s+', ' ', before)),
  'a header that was cut off': lambda before: len(before) + 31,
  'a mark': lambda before: len(before) + 1,
  'utf16, one sign a line end': lambda before: len(
    before.replace('\r\n', '\n').encode('utf-16-le')) // 2,
  'bytes and a mark': lambda before: len(before.encode()) + 3,
  'bytes, two signs a line end': lambda before: len(
    re.sub('(?<!\r)\n', '\r\n', before).encode()),
}
LINES = ('38.5 °C & < 39 \U0001f912, caf\xe9:  \xa0fever\n', 'rash;  given aspirin, then rash\n',
         'na\xefve \U0001f48a \xb5g aspirin  and   chest\xa0 pain\n',
         'no rash, fever & \U0001f912 asthma\n')
WORDS = ('fever', 'rash', 'aspirin', 'chest\xa0 pain', 'asthma')


def note(number, line_end='\n'):
  """A text of all lines, in another order in each note, and the ranges of all words in it."""
  text = ''.join(LINES[number % 4:] + LINES[:number % 4]).replace('\n', line_end)
  return text, [match.span() for word in WORDS for match in re.finditer(word, text)]


def stated(text, place, counted):
  """Offsets, and words as tools write them, of a place."""
  offsets = [COUNTED[counted](text[:at]) for at in place]
  return offsets, ' '.join(text[place[0]:place[1]].split())


def write_brat(folder, notes, counted, mark=''):
  for i, (text, places) in enumerate(notes):
    (folder / f'{i}.txt').write_bytes((mark + text).encode())
    (folder / f'{i}.ann').write_bytes(''.join(
      f'T{j}\tword {start} {end}\t{words}\n' for j, ((start, end), words) in enumerate(
        (stated(text, place, counted) for place in places), 1)).encode())
  return folder


def brat(folder):
  return read_notes(folder, FORMATS['brat'])


@pytest.mark.parametrize('mark', ['', '\ufeff'])
@pytest.mark.parametrize('line_end', ['\n', '\r\n'])
@pytest.mark.parametrize('counted', COUNTED)
def test_one_rule_explains_a_folder(tmp_path, counted, line_end, mark):
  """Whatever was counted, each span is the word that it quotes, and its very occurrence."""
  notes = [note(i, line_end) for i in range(4)]
  documents, counts = brat(write_brat(tmp_path, notes, counted, mark))
  assert [(d.text, [span[:2] for span in d.spans]) for d in documents] == notes
  assert not {'placed_by_words', 'unplaced', 'out_of_range', 'empty_mentions'} & (+counts).keys()
  moved = any(counts[key] for key in counts if key.startswith('offsets_'))
  assert moved == any(stated(text, place, counted)[0] != list(place)
                      for text, places in notes for place in places)


@pytest.mark.parametrize('stated', [
  lambda start, end: (start, end - 1), lambda start, end: (start + 1, end),
  lambda start, end: (start, end - start)])
def test_ends_that_are_the_last_character_or_a_length(tmp_path, stated):
  """Counted from 0 and from 1."""
  notes = [note(i) for i in range(3)]
  for i, (text, places) in enumerate(notes):
    (tmp_path / f'{i}.txt').write_text(text)
    (tmp_path / f'{i}.ann').write_text(''.join(
      'T{}\tword {} {}\t{}\n'.format(j, *stated(start, end), ' '.join(text[start:end].split()))
      for j, (start, end) in enumerate(places)))
  documents, counts = brat(tmp_path)
  assert [[span[:2] for span in d.spans] for d in documents] == [places for _, places in notes]
  assert counts['offsets_of_ends'] == sum(
    stated(*place) != place for _, places in notes for place in places)


def test_what_is_counted_is_said_by_its_kind(tmp_path):
  notes = [note(i, '\r\n') for i in range(2)]
  _, counts = brat(write_brat(tmp_path, notes, 'utf16, one sign a line end'))
  assert counts['offsets_utf16'] == counts['offsets_line_ends'] > 0
  assert not counts['offsets_shifted'] and not counts['text_mismatch']


def test_a_folder_of_notes_from_two_tools(tmp_path):
  """Line ends of a note are counted once, those of the others as they are; and two that shift."""
  notes = [note(i, '\r\n') for i in range(4)]
  for i, counted in enumerate(('characters', 'one sign a line end', 'a mark',
                               'a header that was cut off')):
    (tmp_path / str(i)).mkdir()
    write_brat(tmp_path / str(i), [notes[i]], counted)
    for file in (tmp_path / str(i)).iterdir():
      file.rename(tmp_path / f'{i}{file.suffix}')
  documents, counts = brat(tmp_path)
  assert [[span[:2] for span in d.spans] for d in documents] == [places for _, places in notes]
  assert counts['offsets_shifted'] == 18 and 0 < counts['offsets_line_ends'] < 9


def test_words_show_the_place_where_no_rule_does(tmp_path):
  """One line was edited: its words stand once, or once between their neighbours; 'gone' nowhere."""
  text = 'no rash, fever and rash, fever at night, asthma, fever, cough.'
  places = [(text.index(word), word) for word in ('no', 'rash', 'fever at night', 'cough')]
  places += [(text.index(', fever') + 2 - 4, 'fever')]  # four too few; the first of three
  wrong = {'cough': 3}
  (tmp_path / 'a.txt').write_text(text)
  (tmp_path / 'a.ann').write_text(''.join(
    f'T{i}\tword {start - wrong.get(word, 0)} {start - wrong.get(word, 0) + len(word)}\t{word}\n'
    for i, (start, word) in enumerate(places, 1)))
  (document,), counts = brat(tmp_path)
  assert [document.text[s.start:s.end] for s in document.spans] == [word for _, word in places]
  assert document.spans[4].start == text.index('fever')
  assert counts['placed_by_words'] == 2 and counts['entities'] == 5


def test_words_that_lead_nowhere_are_refused_or_set_aside(tmp_path):
  text = 'rash ' * 40
  lines = [f'T{i}\tword {5 * i} {5 * i + 4}\trash\n' for i in range(40)]
  (tmp_path / 'a.txt').write_text(text)
  lines[3] = lines[3].replace('15 19', '16 20')
  (tmp_path / 'a.ann').write_text(''.join(lines))
  (document,), counts = brat(tmp_path)
  # Between the neighbours is its own place.
  assert counts['placed_by_words'] == 1 and document.spans[3] == Span(15, 19, 'word')
  for i in range(5):
    lines[7 * i] = lines[7 * i].replace('rash', 'fever')
  (tmp_path / 'a.ann').write_text(''.join(lines))
  with pytest.raises(InputError, match=(
      r"a.ann:1: annotation 'T0' has the offsets 0 to 4, where the text has 'rash' and not 'fever'"
      r'; so it is with 5 of 40 annotations.*at most 10% are set aside')):
    brat(tmp_path)
  lines[0] = lines[0].replace('fever', 'rash')
  (tmp_path / 'a.ann').write_text(''.join(lines))
  (document,), counts = brat(tmp_path)
  assert (len(document.spans), counts['text_mismatch']) == (40, 4)


def bioc(text_of, relative=False, start=lambda offset: offset):
  passages, offset = [], 0
  for line in LINES:
    text = line.strip('\n')
    annotations = []
    for match in re.finditer('|'.join(WORDS), text):
      first, end = (text_of(text[:at]) for at in match.span())
      annotations.append({
        'id': str(len(annotations)), 'infons': {'type': 'word'}, 'text': match[0],
        'locations': [{'offset': first + (0 if relative else offset), 'length': end - first}]})
    passages.append({'offset': start(offset), 'text': text, 'annotations': annotations})
    offset += text_of(text) + 1
  return json.dumps({'documents': [{'id': 'd', 'passages': passages}]})


@pytest.mark.parametrize(('counted', 'relative', 'start', 'count'), [
  ('bytes', False, lambda offset: offset, 'offsets_bytes'),
  ('utf16', False, lambda offset: offset, 'offsets_utf16'),
  ('characters', True, lambda offset: offset, 'offsets_of_passages'),
  ('bytes', True, lambda offset: offset, 'offsets_of_passages'),
  ('characters', True, lambda offset: 0, None),  # no passage knows where it begins
])
def test_offsets_of_passages(tmp_path, counted, relative, start, count):
  path = tmp_path / 'a.json'
  path.write_text('\ufeff' + bioc(COUNTED[counted], relative, start))
  (document,), counts = read_notes(path, FORMATS['bioc'])
  found = Counter(document.text[s.start:s.end] for s in document.spans)
  assert found == {'fever': 2, 'rash': 3, 'aspirin': 2, 'chest\xa0 pain': 1, 'asthma': 1}
  assert len({s.start for s in document.spans}) == 9 and not counts['placed_by_words']
  assert count is None or counts[count]


def pubtator(text, places, counted):
  title, abstract = text.split('\n')
  lines = [f'1|t|{title}', f'1|a|{abstract}']
  for place in places:
    (start, end), words = stated(text, place, counted)
    lines.append(f'1\t{start}\t{end}\t{words}\tword\tD1')
  return '\n'.join(lines)


def phee(text, places, counted):
  found = [stated(text, place, counted) for place in places]
  trigger, *others = ({'text': [[words]], 'start': [[start]]} for (start, _), words in found)
  event = {'event_type': 'word', 'Trigger': trigger} | {f'A{i}': x for i, x in enumerate(others)}
  return json.dumps({'id': '1', 'context': text, 'annotations': [{'events': [event]}]})


def bigbio(text, places, counted):
  found = [stated(text, place, counted) for place in places]
  return json.dumps({
    'id': '1', 'passages': [{'id': 'p', 'type': 'x', 'text': [text], 'offsets': [[0, len(text)]]}],
    'entities': [{'id': f'T{i}', 'type': 'word', 'text': [words], 'offsets': [offsets]}
                 for i, (offsets, words) in enumerate(found)], 'events': [], 'relations': []})


@pytest.mark.parametrize('counted', ['utf16', 'bytes', 'no line ends', 'a mark'])
@pytest.mark.parametrize(('form', 'write', 'name'), [
  ('pubtator', pubtator, 'a.txt'), ('phee', phee, 'a.json'), ('bigbio_kb', bigbio, 'a.jsonl')])
def test_other_formats_have_the_same_rules(tmp_path, form, write, name, counted):
  text = LINES[0] + LINES[1].strip()
  places = [match.span() for match in re.finditer('fever|rash|aspirin', text)]
  (tmp_path / name).write_text(write(text, places, counted))
  (document,), counts = read_notes(tmp_path / name, FORMATS[form])
  assert [span[:2] for span in document.spans] == places
  assert sum(counts[key] for key in counts if key.startswith('offsets_')) >= 3


@pytest.mark.parametrize('cut', [
  lambda line: line.split(' '),                        # two blanks have an empty word between them
  lambda line: re.split('[ \t]', line),
  lambda line: ['', *line.split()],                    # words from 1
  lambda line: re.findall('[^ \t]+', line)])           # a protected blank does not part words
def test_i2b2_words_as_other_tools_cut_them(tmp_path, cut):
  lines = ['Denies  chest  pain ,\ttakes  low\xa0dose aspirin', 'No  rash\xa0seen  ; fever']
  concepts = []
  for number, line in enumerate(lines, 1):
    words = cut(line)
    concepts += [f'c="{word.lower()}" {number}:{i} {number}:{i}||t="problem"'
                 for i, word in enumerate(words) if word.isascii() and len(word) > 3]
  (tmp_path / 'a.txt').write_text('\n'.join(lines))
  (tmp_path / 'a.con').write_text('\n'.join(concepts))
  (document,), counts = read_notes(tmp_path, FORMATS['i2b2'])
  words = [document.text[s.start:s.end].lower() for s in document.spans]
  assert [line.split('"')[1] for line in concepts] == words
  assert counts['places_otherwise'] and not counts['placed_by_words']


def test_mentions_without_a_character_or_behind_the_end_take_their_relations_along(tmp_path):
  """T2 is empty, T3 ends a character too far, T4 runs backwards; T1 and T5 are as they should."""
  (tmp_path / 'a.txt').write_text('Fever after drugA.')
  (tmp_path / 'a.ann').write_text(
    'T1\tsign 0 5\tFever\nT2\tsign 6 6\t\nT3\tdrug 12 19\tdrugA.\n'
    'T5\tdrug 12 17\tdrugA\nR1\tby Arg1:T1 Arg2:T5\nR2\tby Arg1:T2 Arg2:T5\nA1\tNeg T3\n')
  (document,), counts = brat(tmp_path)
  assert document.spans == (Span(0, 5, 'sign'), Span(12, 17, 'drug'))
  assert [link[1:] for link in document.relations] == [(0, 1)]
  assert {key: counts[key] for key in (
    'entities', 'relations', 'empty_mentions', 'out_of_range', 'unanchored')} == {
      'entities': 2, 'relations': 1, 'empty_mentions': 1, 'out_of_range': 1, 'unanchored': 2}


@pytest.mark.parametrize(('text', 'words', 'places'), [
  ('Rash, rash', 'rash', [(6, 10)]), ('Rash; RASHES', 'rash', [(0, 4)]),
  ('chest\r\n  pain', 'chest pain', [(0, 13)]), ('5mg 15 mg', '5', [(0, 1)]),
  ('5mg', 'mg', [(1, 3)]), ('患者发热三天', '发热', [(2, 4)]),
  ('no Crohn\u2019s', "Crohn's", [(3, 10)]), ("x-ray", 'x\u2013ray', [(0, 5)]),
  ('cafe\u0301', 'caf\xe9', [(0, 5)]), ('a.b', 'a*b', []), ('rash', ' ', [])])
def test_where_words_stand(text, words, places):
  assert occurrences(text, words) == places


def test_signs_that_a_tool_wrote_in_the_place_of_others(tmp_path):
  """Three of four quotes have other marks than the text: offsets count, and marks are counted."""
  text = 'Crohn\u2019s, x\u2013ray, \u201cflu\u201d and rash'
  (tmp_path / 'n.txt').write_text(text)
  (tmp_path / 'n.ann').write_text(
    'T1\tx 0 7\tCrohn\'s\nT2\tx 9 14\tx-ray\nT3\tx 16 21\t"flu"\nT4\tx 26 30\trash\n')
  (document,), counts = read_notes(tmp_path, FORMATS['brat'])
  assert [span[:2] for span in document.spans] == [(0, 7), (9, 14), (16, 21), (26, 30)]
  assert counts['text_mismatch'] == 3


def test_errors_of_all_files_are_told_at_once(tmp_path):
  """Each file has an error in its line 2; of four the first is told, and where the others are."""
  for name in 'abcd':
    (tmp_path / f'{name}.conll').write_text('rash O\nx X-y\n')
    (tmp_path / f'{name}.pubtator').write_text('1|t|A\n2|a|B\n')
    (tmp_path / f'{name}.jsonl').write_text('\n{"id": 3}\n')
    (tmp_path / f'{name}.xml').write_text('<collection>\n</x>')
  for form, name, line in (
      ('conll', 'conll', 2), ('pubtator', 'pubtator', 1), ('phee', 'jsonl', 2),
      ('reference', 'jsonl', 2), ('bigbio_kb', 'jsonl', 2), ('bioc', 'xml', 2)):
    with pytest.raises(InputError) as error:
      read_notes(tmp_path, FORMATS[form])
    message = str(error.value)
    assert message.startswith(f'{tmp_path}/a.{name}:{line}: '), message
    others = ', '.join(f'{other}.{name}:{line}' for other in 'bcd')
    assert message.endswith(f'(and 3 more errors: {others})'), message

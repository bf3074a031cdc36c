"""Forms that corpora and tools have beside those of their format's description."""

import json

import pytest

from fedmedjax.data.formats.bioc import read_bioc
from fedmedjax.data.formats.brat import read_brat
from fedmedjax.data.formats.conll import read_conll
from fedmedjax.data.formats.pubtator import read_pubtator
from fedmedjax.data.formats.readers import FORMATS, read_notes
from fedmedjax.data.sentences import note_sentences
from fedmedjax.types import InputError


def written(folder, name, content):
  (folder / name).write_text(content, encoding='utf-8')
  return folder / name


def entities(document):
  return [(document.text[s.start:s.end], s.type) for s in document.spans]


def links(document):
  """(type, words of the head, words of the tail) of each relation."""
  words = [document.text[s.start:s.end] for s in document.spans]
  return [(r.type, words[r.head], words[r.tail]) for r in document.relations]


# --- relations between concepts -----------------------------------------------------------------

ABSTRACT = '7|t|Fever after aspirin, then asthma.\n7|a|A G12A and a V600E carrier had rash.\n'
MENTIONS = (
  '7\t0\t5\tFever\tDisease\tD1,D2\n7\t12\t19\taspirin\tChemical\tMESH:C1\n'
  '7\t26\t32\tasthma\tDisease\tD3;D4\n7\t36\t40\tG12A\tVariant\tc|SUB|G|12|A\n'
  '7\t47\t52\tV600E\tVariant\ttmVar:p|SUB|V|600|E;HGVS:p.V600E;CorrespondingGene:673\n'
  '7\t65\t69\trash\tDisease\tD5+D2\n')


@pytest.mark.parametrize(('ends', 'found'), [
  ('C1\tD2\tNovel', ('aspirin', 'Fever')), ('C1\tD2\tNo', ('aspirin', 'Fever')),
  ('MESH:C1\tD4\t', ('aspirin', 'asthma')), ('C1\tMESH:D3', ('aspirin', 'asthma')),
  ('Chemical|MESH:C1\tDisease|D5', ('aspirin', 'rash')),
  ('chemical|C1\tDisease|MESH:D2', ('aspirin', 'Fever')),
  ('c|SUB|G|12|A\tC1', ('G12A', 'aspirin')), ('Variant|c|SUB|G|12|A\tD5', ('G12A', 'rash')),
  ('p|SUB|V|600|E\tD1', ('V600E', 'Fever')), ('HGVS:p.V600E\tD1', ('V600E', 'Fever')),
  ('D1,D2\tC1', ('Fever', 'aspirin')),
  # One mention names both concepts: an end is the next mention of one of them.
  ('D1\tD2', ('Fever', 'rash')), ('D2\tD1', ('rash', 'Fever')), ('D2\tD2', ('Fever', 'rash')),
  # Parts of a variant's id, the gene that it lies in and what is named nowhere are no mentions.
  ('12\tC1', None), ('A\tC1', None), ('673\tC1', None), ('D3\tD4', None), ('Disease|D9\tC1', None),
])
def test_pubtator_relations_of_concepts(tmp_path, ends, found):
  path = written(tmp_path, 'a.pubtator', f'{ABSTRACT}{MENTIONS}7\tBind\t{ends}\n')
  (document,), counts = read_pubtator(path)
  assert links(document) == ([('Bind', *found)] if found else [])
  assert (counts['relations'], counts['unanchored']) == ((1, 0) if found else (0, 1))
  assert counts['relation_notes'] == ('No' in ends)


def bioc(*relations):
  def annotation(ident, start, words, kind, **infons):
    return {'id': ident, 'infons': {'type': kind} | infons, 'text': words,
            'locations': [{'offset': start, 'length': len(words)}]}

  return json.dumps({'documents': [{'id': '7', 'passages': [
    {'offset': 0, 'infons': {}, 'text': 'Fever after aspirin; fever.', 'annotations': [
      annotation('1', 0, 'Fever', 'Disease', identifier='D1,D2'),
      annotation('2', 12, 'aspirin', 'Chemical', MESH='C1'),
      annotation('3', 21, 'fever', 'Disease', identifier='MESH:D1')]}],
    'relations': [{'id': 'R', 'infons': {'type': 'Bind'} | infons, 'nodes': [
      {'refid': ident, 'role': ''} for ident in nodes]} for infons, nodes in relations]}]})


@pytest.mark.parametrize(('infons', 'nodes', 'found'), [
  ({'entity1': 'C1', 'entity2': 'D2', 'novel': 'No'}, '', (1, 0)),
  ({'role1': 'Chemical|MESH:C1', 'role2': 'Disease|D1'}, '', (1, 0)),
  ({'Chemical': 'C1', 'Disease': 'D2', 'score': '0.9'}, '', (1, 0)),
  ({'role1': {'identifier': 'MESH:D1', 'type': 'Disease'},
    'role2': {'identifier': 'C1', 'type': 'Chemical'}}, '', (0, 1)),
  # Nodes that number other things than annotations; nodes that are mentions of the concepts.
  ({'entity1': 'C1', 'entity2': 'D1'}, '01', (1, 0)),
  ({'entity1': 'C1', 'entity2': 'D1'}, '23', (1, 2)),
  ({}, '31', (2, 0)), ({'entity1': 'C1', 'entity2': 'D9'}, '', None), ({'note': 'D1'}, '', None),
])
def test_bioc_relations_of_concepts(tmp_path, infons, nodes, found):
  (document,), counts = read_bioc(written(tmp_path, 'a.json', bioc((infons, nodes))))
  assert [link[1:] for link in document.relations] == ([found] if found else [])
  assert counts['unanchored'] == (not found)


def test_bioc_and_pubtator_of_bc5cdr_have_the_same_relations(data_folder):
  """The development part comes in both formats; its BioC relations name concepts, too."""
  folder = data_folder / 'bc5cdr'
  ours, counts = read_bioc(folder / 'CDR_DevelopmentSet.BioC.xml')
  theirs, _ = read_pubtator(folder / 'CDR_DevelopmentSet.PubTator.txt')
  assert counts['unanchored'] == 0
  assert [len(d.relations) for d in ours] == [len(d.relations) for d in theirs]
  same = sum(links(a) == links(b) for a, b in zip(ours, theirs, strict=True))
  assert same > 470, same  # a composite mention is split up in one of the formats


# --- brat ---------------------------------------------------------------------------------------

FEVER = 'T1\tDISO 8 13\tfever\nT2\tDISO 18 23\tcough\n'


@pytest.mark.parametrize(('lines', 'found'), [
  ('R1\tREL arg1:T1 ARG2:T2', ('fever', 'cough')), ('R1\tREL Arg2:T1 Arg1:T2', ('cough', 'fever')),
  ('R1\tREL To:T2 From:T1', ('fever', 'cough')), ('R1\tREL Tail:T1 Head:T2', ('cough', 'fever')),
  ('R1\tREL Entity2:T1 Entity1:T2', ('cough', 'fever')),
  ('R1\tREL Cause:T2 Effect:T1', ('cough', 'fever')),
  ('R1\tREL\tArg1: T1\tArg2: T2', ('fever', 'cough')),
  ('R1  REL Arg1:T1 Arg2:T2 ', ('fever', 'cough')),
  ('R1 REL Cause:t1 Effect:t2', ('fever', 'cough')),
])
def test_brat_roles_of_any_name_and_order(tmp_path, lines, found):
  (tmp_path / 'n.txt').write_text('Bob has fever and cough.')
  written(tmp_path, 'n.ann', f'{FEVER}{lines}\n')
  (document,), _ = read_brat(tmp_path)
  assert links(document) == [('REL', *found)]


def test_brat_roles_keep_their_meaning_in_all_notes(tmp_path):
  """The first note says that the anaphora is the head; in the second it stands last."""
  for name, order in (('a', 'Anaphora:T2 Antecedent:T1'), ('b', 'Antecedent:T1 Anaphora:T2')):
    (tmp_path / f'{name}.txt').write_text('Bob has fever and cough.')
    written(tmp_path, f'{name}.ann', f'{FEVER}R1\tCoref {order}\nR2\tX A:T1 B:T2 C:T1\n')
  documents, counts = read_brat(tmp_path)
  assert [links(d) for d in documents] == [[('Coref', 'cough', 'fever')]] * 2
  assert counts['nary'] == 2


def test_brat_blanks_for_tabs_and_lines_that_only_look_like_it(tmp_path):
  text = 'Bob has fever and cough, lead\nT1 wave inversion.'
  (tmp_path / 'n.txt').write_text(text)
  written(tmp_path, 'n.ann', (
    'T1 DISO 8 13 fever\nT2\tDISO\t18\t23\tcough\nT3\tTEST 25 47\tlead\nT1 wave inversion\n'
    'E1 DISO:T1 Of:T2\nA1 Negated E1\nN1 Reference T1 UMLS:C1\tfever\n#1 AnnotatorNotes T1 sure\n'
    '* Equiv T1 T2\n'))
  (document,), counts = read_brat(tmp_path)
  assert entities(document) == [
    ('fever', 'DISO'), ('cough', 'DISO'), ('lead\nT1 wave inversion', 'TEST')]
  assert links(document) == [('Of', 'fever', 'cough'), ('Negated', 'fever', 'fever')]
  assert [counts[key] for key in ('text_mismatch', 'nary', 'notes', 'normalisations')] == [
    0, 1, 1, 1]


# --- CoNLL --------------------------------------------------------------------------------------


@pytest.mark.parametrize(('text', 'documents', 'found'), [
  # Comments, which may look like words, and words that look like comments.
  ('# global.columns = FORM NER\n# sent_id = 1\n# text = Vitamin B\nVitamin B-x\nB I-x\n', 1,
   ['Vitamin B']),
  ('# id 7a\tdomain=train\nfever _ _ B-x\n\n# id 7b\tdomain=dev\nno _ _ O\ncough _ _ B-x\n', 1,
   ['fever', 'cough']),
  ('# another comment\n#rash\tB-x\n#\tI-x\n#\tO\n', 1, ['#rash #']),
  # Documents.
  ('###MEDLINE:1\n\na B-x\n\n###MEDLINE:2\n\nb B-x\n', 2, ['a', 'b']),
  ('# newdoc\na B-x\n\n# newdoc id = z\n# newpar\nb B-x\n', 2, ['a', 'b']),
  ('##PMID: 1\na B-x\n\n##PMID: 2\nb B-x\n', 2, ['a', 'b']),
  ('#begin document (a); part 000\na B-x\n\n#end document\n#begin document (b)\nb B-x\n', 2,
   ['a', 'b']),
  # Schemes of tags.
  ('a B-x\nb M-x\nc M-x\nd E-x\ne S-x\n', 1, ['a b c d', 'e']),
  ('a B-x\nb I-x\nc L-x\nd U-x\ne W-y\n', 1, ['a b c', 'd', 'e']),
  ('a I-x\nb I-x\nc B-x\nd I-y\n', 1, ['a b', 'c', 'd']),
  ('a x-B\nb x-I\nc O\nd x-S\n', 1, ['a b', 'd']), ('a B\nb I\nc O\nd B\n', 1, ['a b', 'd']),
  # Tokens without a character, columns and numbers.
  ('a\tB-x\n\tI-x\nb\tI-x\n', 1, ['a b']), ('a B-x\n O\nb B-x\n', 1, ['a', 'b']),
  ('a\tN\tB-x\n\u3000\tN\tI-x\n\tN\tI-x\nb\tN\tI-x\n', 1, ['a b']),
  ('0\ta\tB-x\n1\tb\tI-x\n\n0\tc\tB-x\n', 1, ['a b', 'c']),
  ('1\ta\tB-x\n2\tb\tI-x\n\n3\tc\tB-x\n', 1, ['a b', 'c']),
  ('1-2\tab\t_\tO\n1\ta\t_\tB-x\n2\tb\t_\tI-x\n2.1\tz\t_\tO\n', 1, ['a b']),
  ('1 CD B-x\n2 CD I-x\n\na NN B-x\n', 1, ['1 2', 'a']),
  ('10\xa0mg B-x\na\xa0b I-x\n\nc\xa0B-x\n', 1, ['10\xa0mg a\xa0b', 'c']),
  # Two files after one another, each with a byte-order mark.
  ('\ufeff-DOCSTART- O\n\na B-x\n\n\ufeff-DOCSTART- O\n\nb B-x\n', 2, ['a', 'b']),
  ('\ta\tB-x\n\tb\tI-x\n', 1, ['a b']), ('1\ta\tB-x\n2\tb\tI-x\n\n1\tc\tB-x\n', 1, ['a b', 'c']),
])
def test_conll_variants(tmp_path, text, documents, found):
  read, counts = read_conll(written(tmp_path, 'a.conll', text))
  assert len(read) == documents
  assert [words for d in read for words, _ in entities(d)] == found
  assert counts['entities'] == len(found)


@pytest.mark.parametrize('text', ['a O\n# Q-x\n', 'a O\nb\n', '# a comment only\n', 'a O\nb\tQ\n'])
def test_conll_lines_that_are_neither_are_refused(tmp_path, text):
  with pytest.raises(InputError, match=r'a\.conll(:2: malformed|$)'):
    read_conll(written(tmp_path, 'a.conll', text))


# --- JSON ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('text', [
  '<span class="x">b</span> c', '<SPAN CLASS=x>b</SPAN> c', "<span id='1' class='x' >b</span> c",
  '<span class="x" title="class of b">b</span> c'])
def test_tags_of_html_as_tools_write_them(tmp_path, text):
  path = written(tmp_path, 'a.json', json.dumps([{'html': text}]))
  (document,), _ = read_notes(path, FORMATS['reference'])
  assert (document.text, entities(document)) == ('b c', [('b', 'x')])


def test_the_same_sentence_of_two_notes_is_two_documents(tmp_path):
  rows = [{'tokens': ['b'], 'tags': ['B-x'], 'pmid': pmid} for pmid in (1, 2, 2)]
  documents, counts = read_notes(
    written(tmp_path, 'a.json', json.dumps(rows)), FORMATS['reference'])
  assert [d.source for d in documents] == ['1', '2'] and counts['merged_records'] == 1


def test_bioc_a_document_a_line_and_ids_that_are_numbers(tmp_path):
  lines = [bioc().replace('"7"', '7').replace('"1"', '1'), json.dumps(
    json.loads(bioc(({}, '31')))['documents'][0])]
  for text in ('\n'.join(lines) + '\n', f'[{lines[0]},\n{lines[1]}]'):
    documents, counts = read_bioc(written(tmp_path, 'a.json', text))
    assert [d.name for d in documents] == ['7', '7_2'] and counts['entities'] == 6
    assert [len(d.relations) for d in documents] == [0, 1]


def test_bigbio_ids_that_are_numbers_and_entities_without_a_place(tmp_path):
  record = {'document_id': 7, 'passages': [{'text': ['Rash now.'], 'offsets': [[0, 9]]}],
            'entities': [{'id': 1, 'type': 'x', 'text': ['Rash'], 'offsets': [[0, 4]]},
                         {'id': 2, 'type': 'x', 'text': [], 'offsets': []}],
            'events': [{'id': 3, 'type': 'y', 'trigger': {'text': ['now'], 'offsets': [[5, 8]]},
                        'arguments': [{'role': 'of', 'ref_id': 1}]}]}
  path = written(tmp_path, 'a.jsonl', json.dumps(record))
  (document,), counts = read_notes(path, FORMATS['bigbio_kb'])
  assert document.name == '7' and links(document) == [('of', 'now', 'Rash')]
  assert entities(document) == [('Rash', 'x'), ('now', 'y')] and counts['out_of_range'] == 1


# --- rows without text --------------------------------------------------------------------------

KB = {'document_id': 'd', 'passages': [{'text': ['Rash.'], 'offsets': [[0, 5]]}], 'entities': []}


@pytest.mark.parametrize(('form', 'row', 'empty'), [
  ('reference', {'tokens': ['a'], 'tags': ['B-x']}, [{'tokens': [], 'tags': []}]),
  ('reference', {'tokens': ['a'], 'tags': ['B-x']}, [
    {'tokens': ['', ' '], 'tags': ['O', 'O']}, {'tokens': None, 'tags': None}]),
  ('reference', {'html': 'a <span class="x">b</span>'}, [{'html': ''}, {'html': None}]),
  ('reference', {'input': '<span class="x">b</span>', 'output': 'b'}, [
    {'input': '', 'output': ''}]),
  ('bigbio_kb', KB, [{'document_id': None, 'passages': []}, KB | {'passages': None}]),
])
def test_empty_rows_are_set_aside_and_counted(tmp_path, form, row, empty):
  path = written(tmp_path, 'a.jsonl', '\n'.join(map(json.dumps, [row, *empty, row | {'more': 1}])))
  documents, counts = read_notes(path, FORMATS[form])
  assert len(documents) == 2 - counts['merged_records'] and counts['empty_records'] == len(empty)


def test_empty_rows_of_saved_data_sets(tmp_path):
  import datasets
  rows = datasets.Dataset.from_list([
    {'html': 'a <span class="x">b</span>'}, {'html': None}, {'html': ''}, {'html': 'c'}])
  rows.save_to_disk(tmp_path / 'saved')
  documents, counts = read_notes(tmp_path / 'saved', FORMATS['datasets'])
  assert [d.text for d in documents] == ['a b', 'c'] and counts['empty_records'] == 2


# --- sentences that come split ------------------------------------------------------------------


def test_sentences_of_a_corpus_stay_as_they_are(tmp_path):
  """By rule 'Dr . Seen by X . Fine' and the BioC sentence would be split, the others joined."""
  conll = 'Seen O\n. O\nFine B-x\n\nand I-x\nwell O\n'
  (document,), _ = read_conll(written(tmp_path, 'a.conll', conll))
  assert [document.text[a:b] for a, b in note_sentences(document)] == ['Seen . Fine', 'and well']
  record = {'tokens': ['Seen', '.', 'He', 'is', 'well', '.'], 'tags': ['O'] * 6}
  path = written(tmp_path, 'a.json', json.dumps([record]))
  (document,), _ = read_notes(path, FORMATS['reference'])
  assert note_sentences(document) == [(0, len(document.text))]
  passages = [
    {'offset': 0, 'text': 'A title. Not split.'},
    {'offset': 20, 'sentences': [{'offset': 20, 'text': 'He is ill. She is'},
                                 {'offset': 38, 'text': 'well today.'}]}]
  path = written(tmp_path, 'a.json', json.dumps({'documents': [{'id': 'd', 'passages': passages}]}))
  (document,), _ = read_bioc(path)
  assert [document.text[a:b] for a, b in note_sentences(document)] == [
    'A title.', 'Not split.', 'He is ill. She is', 'well today.']

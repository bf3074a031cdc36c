"""Schemas of one's own: what is read and refused, and what mappings, prompts and answers make of
them, on the real corpora too."""

import hashlib
import itertools

import numpy as np
import pytest

from fedmedjax.data import tasks
from fedmedjax.data.formats.brat import read_brat
from fedmedjax.data.formats.corpora import SiteFolder, load_corpus, load_folder
from fedmedjax.data.formats.mapped import apply_mapping
from fedmedjax.data.formats.mapping import read_mapping
from fedmedjax.data.formats.pubtator import read_pubtator
from fedmedjax.data.formats.writers import with_plain_names, write_brat
from fedmedjax.data.labels import label_names
from fedmedjax.data.partition import partition
from fedmedjax.data.relations import annotated, relation_examples
from fedmedjax.data.schema import SHIPPED, parse_schema, read_schema
from fedmedjax.data.statistics import lacking
from fedmedjax.types import (
  ENTITY_TYPES,
  MODIFIER_TYPES,
  PAPER,
  Document,
  Example,
  InputError,
  Relation,
  SiteCorpus,
  Span,
)

# Names with blanks and signs; a relation of one type, and one of both.
OWN = '''
[entities."Lab value"]
definition = "the result of a test"
example = "7.2 g/dL"

[entities.ADE]
definition = "harm by a drug"
example = "rash"
colour = "#aa3355"

[relations."how bad"]
definition = "how bad it is"
example = "mild"
of = ["ADE"]

[relations.when]
definition = "when it was"
example = "today"
of = ["ADE", "Lab value"]
'''


def test_the_schema_of_the_paper_is_the_default_and_a_file_at_once():
  paper = read_schema('paper')
  assert paper[:2] == PAPER[:2] and read_schema('') == PAPER == PAPER._replace(source='', text='')
  assert len(paper.entities) == 4 and len(paper.relations) == 16
  assert sum(map(len, MODIFIER_TYPES.values())) == 22 and paper.modifiers == MODIFIER_TYPES


def test_every_prompt_of_the_paper_is_pinned():
  """Saved adapters know just these. The checksum is that of the version before schemas were
  files: 15 sets of types, three sets of pairs, both tasks in both styles."""
  said, sets = hashlib.sha256(), (
    MODIFIER_TYPES, {'problem': ('negation', 'severity'), 'drug': ('route', 'temporal')},
    {'test': ('temporal',), 'treatment': ('negation', 'temporal')})
  for count in range(1, 5):
    for types in itertools.combinations(ENTITY_TYPES, count):
      for pairs, style, task in itertools.product(sets, tasks.STYLES, tasks.TASKS):
        asked = tasks.ask(task, SiteCorpus('w', types, (), (), {}, pairs), style)
        said.update(repr((
          asked.instruction, asked.types, asked.pieces,
          sorted((of, sorted(kinds)) for of, kinds in asked.asked.items()),
          list(asked.asked))).encode())
  assert said.hexdigest() == 'b816c39388d345b85552945ea09b6995df57ca7aab1aa8cb8ee03ffa5eb77abf'


def entry(section: str, name: str, **changes) -> str:
  values = {'definition': '"d"', 'example': '"e"'} | changes
  return f'[{section}.{name}]\n' + ''.join(
    f'{key} = {value}\n' for key, value in values.items() if value is not None)


_A = entry('entities', 'A')


@pytest.mark.parametrize('text, line, words', [
  (_A + entry('entities', 'a'), 4, r"\[entities.a\]: 'A' has this name"),
  (entry('entities', '"a b"') + entry('entities', 'a_b'), 4, "'a b' has this name"),
  (_A + _A, 4, 'no TOML: .*twice'),
  (_A + entry('relations', 'A', of='["A"]'), 4, "'A' has this name"),
  (entry('entities', '""'), 1, 'a name is not empty'),
  (entry('entities', '" a"'), 1, 'no blanks around'),
  (entry('entities', '"a<b"'), 1, 'one line without <'),
  (entry('entities', "'a\"b'"), 1, 'one line without <'),
  (entry('entities', '"a\\nb"'), 1, 'one line without <'),
  (entry('entities', '"a\\u2028b"'), 1, 'one line without <'),
  (entry('entities', '"' + 61 * 'a' + '"'), 1, 'at most 60 characters'),
  (entry('entities', 'Main'), 1, 'have a meaning in reports'),
  (_A + entry('relations', 'r', of='["A", "B"]'), 4, r"\[relations.r\].*'B' is no entity type"),
  (_A + entry('relations', 'r', of='"A"'), 4, 'a list of entity types'),
  (_A + entry('relations', 'r', of='["A", "A"]'), 4, 'names a type twice'),
  (_A + entry('relations', 'r'), 4, "'of' is missing"),
  (_A + entry('entities', 'b', definition=f'"{"w " * 101}"'), 4, 'has 101 words; at most 100'),
  (_A + entry('entities', 'b', definition='""'), 4, "definition='': one line"),
  (_A + entry('entities', 'b', example='3'), 4, 'example=3: one line'),
  (_A + entry('entities', 'b', example=None), 4, "'example' is missing"),
  (_A + entry('entities', 'b', color='"red"'), 4, "'color' is unknown; definition"),
  (_A + entry('entities', 'b', colour='"red"'), 4, "colour='red': such as"),
  (_A + entry('relation', 'b'), 4, "'relation' is unknown; entities and relations"),
  ('entities = 3', 1, 'is no table'), ('[entities]\na = "d"', 2, 'is no table'),
  ('', 1, r'no \[entities.NAME\]'), ('[entities.a', 1, 'no TOML'),
  (entry('entities', 'A') + entry('entities', '"A.r.s"') + entry('entities', '"A.r"')
   + entry('relations', 's', of='["A.r"]'), 10, 'is the name of two things')])
def test_what_is_no_schema_is_refused_in_one_line(text, line, words):
  with pytest.raises(InputError, match=f'^own.toml:{line}: .*{words}') as error:
    parse_schema(text, 'own.toml')
  assert '\n' not in str(error.value)


def test_a_schema_that_is_not_there_is_refused(tmp_path):
  with pytest.raises(InputError, match="schema='nope': one of bc5cdr, maccrobat20, paper, a .toml"):
    read_schema('nope')
  with pytest.raises(InputError, match='schema=.*cannot read'):
    read_schema(tmp_path / 'x.toml')
  (tmp_path / 'x.toml').write_bytes(b'\xff')
  with pytest.raises(InputError, match='schema=.*x.toml:1: no UTF-8'):
    read_schema(tmp_path / 'x.toml')
  long = entry('entities', 'a', definition=f'"{"w " * 100}"')
  assert parse_schema(long, '').types == ('a',)  # just as many as are allowed


def note(tmp_path, number: int) -> Document:
  text = f'mild rash today, Hb 7.{number}; aspirin'
  return Document(f'n{number}', text, (
    Span(5, 9, 'ADE'), Span(17, 23, 'Lab value'), Span(25, 32, 'Drug'), Span(0, 4, 'how bad'),
    Span(10, 15, 'when')), (
      Relation('how bad', 0, 3), Relation('when', 1, 4), Relation('how bad', 1, 3),
      Relation('cause', 0, 2)))


@pytest.mark.parametrize('style', tasks.STYLES)
def test_own_types_from_notes_to_prompts_and_answers(tmp_path, style):
  """As brat files have them, 'Lab_value' for 'Lab value'. The drugs that the schema lacks, and a
  relation of a pair that it does not allow, are left out and counted."""
  schema = parse_schema(OWN, 'own.toml')
  write_brat(tmp_path / 'in', [with_plain_names(note(tmp_path, i)) for i in range(4)])
  site = load_folder(SiteFolder('ward', tmp_path / 'in', 'brat', 'schema'), schema)
  assert site.types == ('Lab value', 'ADE') and site.schema == schema
  assert annotated(site) == {'ADE': ('how bad',), 'Lab value': ('when',)}
  assert lacking(site.report) == 'Drug 4; relations cause 4'
  assert site.report['invalid_pairs'] == 4
  entities, modifiers = (tasks.ask(task, site, style) for task in ('ner', 're'))
  assert entities.types == ('Lab value', 'ADE') and modifiers.types == ('how bad', 'when')
  assert entities.instruction.endswith(
    '### Definitions:\nLab value: the result of a test\nADE: harm by a drug\n### Input Text:\n')
  # Heads of a classifier, too.
  assert label_names(tasks.asked_types('re', [site])) == (
    'O', 'B-how bad', 'I-how bad', 'B-when', 'I-when')
  (example,), _ = entities.find(site.train[0])
  assert [span.type for span in example.entities] == ['ADE', 'Lab value']
  assert entities.parse(entities.render(example)[1], example) == (example.entities, False, True, 0)
  found, _ = modifiers.find(site.train[0])
  for one in found:
    assert modifiers.parse(modifiers.render(one)[1], one) == (one.entities, False, True, 0)
  assert {one.main.type: [span.type for span in one.entities] for one in found} == {
    'ADE': ['how bad'], 'Lab value': ['when']}


def test_names_are_read_from_markup_as_models_write_them():
  schema = parse_schema(OWN, 'own.toml')
  asked = tasks.ask('ner', SiteCorpus('w', schema.types, (), (), {}, {}, schema=schema))
  for written in ('class="Lab value"', "class='lab VALUE'", 'class = "Lab value" id="x"'):
    (span,) = asked.parse(f'<span {written}>7.2</span>', Example('n', 0, '7.2', ())).spans
    assert span == Span(0, 3, 'Lab value'), written
  for written in ('class=Lab value', 'class="Lab"', 'class="Lab value x"'):
    assert not asked.parse(f'<span {written}>7.2</span>', Example('n', 0, '7.2', ())).spans
  # One word is enough, as ever, whatever stands behind it.
  for written in ('class=ADE', 'class="ADE 1"', 'class="ade", id="Lab value"'):
    assert asked.parse(f'<span {written}>x</span>', Example('n', 0, 'x', ())).spans


_PUBTATOR = '''1|t|Aspirin and ulcers.
1|a|Ulcers came with aspirin. Heparin came later. Rash too.
1\t0\t7\tAspirin\tChemical\tD1
1\t12\t18\tulcers\tDisease\tD2
1\t20\t26\tUlcers\tDisease\tD2
1\t37\t44\taspirin\tChemical\tD1
1\t46\t53\tHeparin\tChemical\tD3
1\t66\t70\tRash\tDisease\tD4
1\tCID\tD1\tD2
1\tCID\tD3\tD4
1\tCID\tD1\tD9
'''


def test_relations_of_concepts_link_mentions_of_one_sentence(tmp_path):
  """Both sentences that hold aspirin and ulcers give a pair; heparin and rash stand in no common
  sentence; D9 has no mention."""
  (tmp_path / 'x.txt').write_text(_PUBTATOR)
  documents, counts = read_pubtator(tmp_path / 'x.txt')
  assert counts['relations'] == 2 and counts['unanchored'] == 1
  (mapped,), found = apply_mapping(documents, read_mapping('schema', read_schema('bc5cdr')))
  ends = {(link.type, *(mapped.text[slice(*mapped.spans[end][:2])] for end in link[1:]))
          for link in mapped.relations}
  assert ends == {('CID', 'Aspirin', 'ulcers'), ('CID', 'aspirin', 'Ulcers')}
  assert found['between_sentences'] == 1 and found['relations'] == 2
  # A mapping of one's own says so; without it the first mentions are linked, as ever.
  for row, pairs in (('', 2), ('mentions = "sentence"\n', 2), ('mentions = "first"\n', 2)):
    (tmp_path / 'm.toml').write_text(
      f'[entities]\nChemical = "Chemical"\nDisease = "Disease"\n[relations.CID]\n{row}'
      'modifiers = "CID"\n')
    _, kept = apply_mapping(
      documents, read_mapping(tmp_path / 'm.toml', read_schema('bc5cdr')))
    assert kept['relations'] == pairs and kept['between_sentences'] == ('sentence' in row)


def test_shipped_mappings_yield_what_the_schema_has(tmp_path):
  """Problems and drugs of one's own definition, with a single relation: the rest is left out."""
  few = parse_schema(
    entry('entities', 'drug') + entry('entities', 'problem')
    + entry('relations', 'route', of='["drug"]'), 'few.toml')
  mapping = read_mapping('maccrobat2020', few)
  assert mapping.types == ('drug', 'problem') and mapping.modifiers == {'drug': ('route',)}
  assert not mapping.attributes and set(mapping.relations) == {'MODIFY'}
  with pytest.raises(InputError, match="'i2b2_2010' yields problem, .* none of which is in"):
    read_mapping('i2b2_2010', read_schema('bc5cdr'))
  (tmp_path / 'm.toml').write_text('[entities]\nx = "test"\n')
  with pytest.raises(InputError, match="m.toml:2: 'x': .*'test'.* is not among drug, problem"):
    read_mapping(tmp_path / 'm.toml', few)


def test_the_shipped_schemas_fit_their_corpora(data_folder):
  """BC5CDR: of 3,116 relations of concepts 2,278 have mentions in a common sentence, 5,763 pairs of
  them, 5,646 of them unlike, as a script that shares nothing with the readers but the sentences
  counts. MACCROBAT2020: the 20 commonest of 41 types."""
  assert SHIPPED == ['bc5cdr', 'maccrobat20', 'paper']
  site = load_corpus('bc5cdr', data_folder, read_schema('bc5cdr'))
  assert site.types == ('Disease', 'Chemical') and site.modifiers == {'Chemical': ('CID',)}
  report = site.report
  assert (report['mapped_Disease'], report['mapped_Chemical']) == (12_850, 15_935)
  assert not lacking(report) and report['raw_relations'] == 3116
  assert (report['between_sentences'], report['mapped_Chemical_CID'], report['relations']) == (
    3116 - 2278, 5763, 5646)
  examples = [one for item in site.test[:50] for one in relation_examples(item, annotated(site))[0]]
  assert all(span.type == 'CID' for one in examples for span in one.entities)
  assert sum(bool(one.entities) for one in examples) > 50
  site = load_corpus('maccrobat2020', data_folder, read_schema('maccrobat20'))
  assert len(site.types) == 20 and not site.modifiers
  left_out = {key: count for key, count in site.report.items() if key.startswith('lacking_type_')}
  assert len(left_out) == 21
  assert min(site.report[f'mapped_{kind}'] for kind in site.types) > max(left_out.values())
  # A few notes are enough to be dealt out by the mix of these types.
  parts, skew = partition(
    [site._replace(train=site.train[:30])], 'types', unit='note', sites=3, strength=0.1, seed=0)
  assert all(part.schema == site.schema and part.types == site.types for part in parts)
  assert skew.type_divergence > 0.01 and np.isfinite(skew.type_divergence)


def test_brat_files_of_own_types_come_back(tmp_path):
  whole = note(tmp_path, 1)
  write_brat(tmp_path, [with_plain_names(whole)])
  (read,), _ = read_brat(tmp_path)
  assert {span.type for span in read.spans} == {'ADE', 'Lab_value', 'Drug', 'how_bad', 'when'}

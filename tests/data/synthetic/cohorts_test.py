"""The invented cohorts: exact annotation, coherent notes, and the differences they promise."""

import inspect
import itertools
import random
import re
from collections import Counter, defaultdict

import pytest

from fedmedjax.data.sentences import sentence_examples
from fedmedjax.data.synthetic import cohorts, frames, vocabulary
from fedmedjax.data.synthetic.cohorts import COHORTS, generate_cohort, unseen_share
from fedmedjax.data.synthetic.note import Missing, Note
from fedmedjax.data.synthetic.patients import ROLES, make_patient, scenarios
from fedmedjax.types import ENTITY_TYPES, MODIFIER_TYPES, InputError

IN_DOMAIN = ('synthetic_icu', 'synthetic_dictation', 'synthetic_clinic')
# What a frame must say of an entity of these roles: else the note would affirm it.
MUST_SAY = {'neg': 'negation', 'nsign': 'negation', 'ruled': 'negation', 'clear>': 'negation',
            'ddx': 'uncertain', 'fh': 'subject', 'warn': 'condition'}


@pytest.fixture(scope='module')
def corpora():
  """All cohorts, with enough notes of each for what is rare to happen."""
  return {name: generate_cohort(name, train_notes=30, test_notes=15) for name in COHORTS}


def entities(documents):
  return [(span.type, document.text[span.start:span.end].lower())
          for document in documents for span in document.spans if span.type in ENTITY_TYPES]


def surfaces():
  """Keys by (type, lower-cased surface)."""
  found = defaultdict(set)
  for (kind, key), entry in vocabulary.entries().items():
    for surface in entry.surfaces:
      found[kind, surface.lower()].add(key)
  return found


def test_annotation_is_exact(corpora):
  """Offsets hit surfaces of the lexicon, nothing overlaps, links are valid and within a line."""
  lexicon = surfaces()
  for document in itertools.chain(*(corpus.train + corpus.test for corpus in corpora.values())):
    text, spans = document.text, document.spans
    at = 0
    for span in spans:  # sorted, of any type
      assert at <= span.start < span.end <= len(text)
      words, at = text[span.start:span.end], span.end
      assert words == words.strip() and '\n' not in words
      around = text[span.start - 1:span.start] + text[span.end:span.end + 1]
      assert not any(map(str.isalnum, around)), (document.name, words)
      assert span.type not in ENTITY_TYPES or (span.type, words.lower()) in lexicon, words
    for relation in document.relations:
      head, tail = spans[relation.head], spans[relation.tail]
      assert relation.type == tail.type and relation.type in MODIFIER_TYPES[head.type]
      assert '\n' not in text[min(head.start, tail.start):max(head.end, tail.end)]
    tails = {relation.tail for relation in document.relations}
    assert tails == {i for i, span in enumerate(spans) if span.type not in ENTITY_TYPES}


def test_every_mention_is_annotated(corpora):
  """No surface of the lexicon stands outside the spans, but for treatments in the clinic."""
  lexicon = defaultdict(set)
  for kind, surface in surfaces():
    if len(surface) > 3:
      lexicon[surface].add(kind)
  for name, corpus in corpora.items():
    missed = Counter()
    for document in corpus.train + corpus.test:
      text = list(document.text.lower())
      for span in document.spans:
        text[span.start:span.end] = '.' * (span.end - span.start)
      words = re.findall(r"[a-z0-9'-]+|\S", ''.join(text))
      for size in (1, 2, 3, 4):
        for i in range(len(words) - size + 1):
          missed.update(lexicon.get(' '.join(words[i:i + size]), ()))
    if name == 'synthetic_clinic':
      # Words inside treatments ("vitamin K diet") may look like something else.
      assert missed['treatment'] > 10 > missed.total() - missed['treatment']
    else:
      assert not missed, name


def test_a_note_does_not_contradict_itself(corpora):
  """What a note denies it does not affirm: a problem or its like, a drug taken or not."""
  lexicon, alike = surfaces(), vocabulary.read('common')['alike'].values()
  groups = [set(vocabulary.split(text, ',')) for text in alike]
  for document in itertools.chain(*(corpus.train + corpus.test for corpus in corpora.values())):
    said, words = defaultdict(set), {}
    for relation in document.relations:
      said[relation.head].add(relation.type)
      if relation.type == 'negation':
        tail = document.spans[relation.tail]
        words[relation.head] = document.text[tail.start:tail.end]
    absent, present = set(), set()
    for i, span in enumerate(document.spans):
      keys = lexicon[span.type, document.text[span.start:span.end].lower()]
      if span.type == 'problem' and not said[i] & {'uncertain', 'condition', 'subject'}:
        (absent if i in words else present).update(keys)
        if i not in words:
          present.update(*(group for group in groups if group & keys))
      # "Holding home lisinopril" is about a drug of the list; others are not taken at all.
      elif span.type == 'drug' and len(keys) == 1 and 'hold' not in words.get(i, ''):
        (absent if words.get(i, 'held') != 'held' else present).update(keys)
    assert not absent & present, document.name


def test_a_note_depends_on_nothing_but_its_number(monkeypatch):
  # conftest.py keeps notes: here every one is written anew.
  monkeypatch.setattr(cohorts, '_write_note', inspect.unwrap(cohorts._write_note))
  whole = generate_cohort('synthetic_icu', seed=7, train_notes=3, test_notes=2)
  again = generate_cohort('synthetic_icu', seed=7, train_notes=3, test_notes=2)
  longer = generate_cohort('synthetic_icu', seed=7, train_notes=5, test_notes=0)
  other = generate_cohort('synthetic_icu', seed=8, train_notes=3, test_notes=2)
  assert whole == again
  assert longer.train[:3] == whole.train and longer.test == ()
  assert other.train != whole.train and other.test != whole.test
  assert len({document.text for document in longer.train + whole.test}) == 7


def test_tests_hold_entities_no_site_trained_on(corpora):
  """The held-out third is the same everywhere, so it is unseen in any federation and seed."""
  trained = {text for name in COHORTS for seed in (1, 42) for _, text in entities(
    generate_cohort(name, seed=seed, train_notes=20, test_notes=0).train)}
  assert trained and not any(map(vocabulary.held_out, trained))
  for name in COHORTS:
    corpus = generate_cohort(name)
    share = unseen_share(corpus.train, corpus.test)
    assert min(share.values()) >= 0.25, (name, share)
    assert corpus.report['unseen_test_entities_percent'] == round(100 * share['all'])
    assert 20 <= corpus.report['held_out_test_entities_percent'] <= 50
  assert not generate_cohort('synthetic_external').train


def test_unseen_share_counts_mentions():
  """Two of three drug mentions and the only test are new: 2/3, 1 and 3/4 in all."""
  def note(*entries):
    text = ' '.join(words for _, words in entries)
    spans = [cohorts.Span(text.index(words), text.index(words) + len(words), kind)
             for kind, words in entries]
    return cohorts.Document('', text, tuple(spans), ())
  train = [note(('drug', 'Aspirin'), ('course', 'ECG'))]
  test = [note(('drug', 'aspirin'), ('drug', 'heparin')), note(('drug', 'heparin'),
                                                               ('test', 'ECG'))]
  assert unseen_share(train, test) == {'drug': 2 / 3, 'test': 1.0, 'all': 3 / 4}


def test_clinic_is_annotated_in_part(corpora):
  clinic = corpora['synthetic_clinic']
  assert clinic.types == ('problem', 'test', 'drug')
  assert {kind for kind, _ in entities(clinic.train + clinic.test)} == set(clinic.types)
  for name, corpus in corpora.items():
    if name != 'synthetic_clinic':
      assert corpus.types == ENTITY_TYPES
      assert {kind for kind, _ in entities(corpus.test)} == set(ENTITY_TYPES)


def test_sites_differ(corpora):
  """Words, mix of types, length of sentences and size: the heterogeneity of a federation."""
  words = {name: set(entities(corpus.train)) for name, corpus in corpora.items()}
  for one, two in itertools.combinations(COHORTS, 2):
    assert len(words[one] & words[two]) / len(words[one] | words[two]) < 0.4, (one, two)
  shares = {}
  for name in ('synthetic_icu', 'synthetic_dictation', 'synthetic_newsite'):
    count = Counter(kind for kind, _ in entities(corpora[name].train))
    shares[name] = count['test'] / count.total()
  assert shares['synthetic_icu'] > 1.2 * shares['synthetic_dictation']
  sizes = [len(entities(generate_cohort(name).train)) for name in IN_DOMAIN]
  assert sizes[0] > 2 * sizes[1] > 3 * sizes[2]


def test_sentences_are_short_and_whole(corpora):
  """The splitter loses no entity, few sentences are repeated, some have nothing to tag."""
  for name, corpus in corpora.items():
    examples, lost = [], Counter()
    for document in corpus.train + corpus.test:
      found, counts = sentence_examples(document, corpus.types)
      examples += found
      lost.update(counts)
    assert lost['nested'] == lost['crossing'] == lost['blank'] == 0
    length = [len(example.text.split()) for example in examples]
    assert 8 < sum(length) / len(length) < 16 and max(length) < 60, name
    tagged = [example.text for example in examples if example.entities]
    assert len(set(tagged)) >= 0.9 * len(tagged), name
    assert 0.05 < 1 - len(tagged) / len(examples) < 0.35, name


def test_text_is_clean(corpora):
  for name, corpus in corpora.items():
    tokenised = name == 'synthetic_external'
    for document in corpus.train + corpus.test:
      text = document.text
      assert text.isascii() and text.endswith('\n')
      assert tokenised == text.islower()
      bad_ones = [r'[{}\[\]]', '  ', ' \n', '\n\n', r'[,;:.][,;.]', r'\b(and|of|the|with|or) \1\b',
                  r'\b[Aa] (?!one-)[aeioAEIO]', ' [.]' if not tokenised else r'\w[.,]\s']
      if not tokenised:  # where MRI is mri
        bad_ones.append(r'\b[Aa]n (?![aeiouAEFHILMNORSX81])')
      for bad in bad_ones:
        assert not re.search(bad, text), (document.name, bad, re.search(bad, text))
      lines = text.splitlines()
      assert len(set(lines)) == len(lines), document.name


@pytest.mark.parametrize('name', COHORTS)
def test_frames_are_sound(name):
  """At least 40 frames; each yields a sentence for some patient, and says what it must."""
  cohort = COHORTS[name]
  style = cohorts._style(cohort.style)
  pending = {frame for section in style['section'] for pool in ('first', 'frames', 'last')
             for frame in section.get(pool, ())}
  assert len(pending) >= 40
  for frame in pending:
    said = [(slot, kind) for slots, kind in re.findall(r'{([a-z0-9,>]+)\.([a-z]+)', frame)
            for slot in slots.split(',')]
    for slot in re.findall(r'{([a-z]+\d?>?\d?)}', frame):
      role = re.sub(r'\d', '', slot)
      assert role not in MUST_SAY or (slot, MUST_SAY[role]) in said, frame
  rng = random.Random(0)
  for scenario in itertools.chain(*(scenarios(cohort.style).values() for _ in range(8))):
    patient = make_patient(scenario, rng)
    patient.words.update(cohorts._plain_words(patient.words['sex'], rng))
    for frame in sorted(pending):
      try:
        frames.render(cohorts._PREFIX.fullmatch(frame)[3],
                      Note(patient, style, name, 'test', rng))
        pending.remove(frame)
      except Missing:
        pass
  assert not pending


def test_scenarios_name_entries():
  """Whatever a patient may be given is in the lexicon, with a value where one is asked for."""
  rng, table, names = random.Random(0), vocabulary.entries(), set()
  for cohort in COHORTS.values():
    names |= set(scenarios(cohort.style))
    for scenario in scenarios(cohort.style).values():
      for role, items in make_patient(scenario, rng).roles.items():
        for item in items:
          for kind, part in zip(ROLES[role], (item, *item.partners[:1]), strict=False):
            entry = table[kind, part.key]
            assert part.direction == '=' or part.direction in dict(entry.values), part
  assert len(names) >= 40


def test_articles():
  for words, expected in (('MRI', 'an'), ('UTI', 'a'), ('HIDA scan', 'a'), ('NSTEMI', 'an'),
                          ('ulcer', 'an'), ('urinalysis', 'a'), ('80-year-old', 'an'),
                          ('18 mg', 'an'), ('180 mg', 'a'), ('one-story', 'a'), ('ECG', 'an')):
    assert frames.article(words) == expected, words
  for words, expected in (('rales', True), ('ascites', False), ('rhonchi', True), ('DVT', False),
                          ('loss of consciousness', False), ('LFTs', True), ('ileus', False)):
    assert frames.plural(words) == expected, words


def test_articles_stand_before_what_can_be_counted(corpora):
  countable = {surface.lower() for entry in vocabulary.entries().values() if entry.countable
               for surface in entry.surfaces if not frames.plural(surface)}
  counted = 0
  for document in itertools.chain(*(corpus.train + corpus.test for corpus in corpora.values())):
    for kind, words in re.findall(r'\b(an?) \0(.*?)\0', _marked(document)):
      assert words.lower() in countable, (document.name, kind, words)
      counted += 1
  assert counted > 20


def _marked(document):
  """The text with a NUL on both sides of each problem, and without the adjectives of problems."""
  text = document.text
  for span in reversed(document.spans):
    if span.type == 'problem':
      text = f'{text[:span.start]}\0{text[span.start:span.end]}\0{text[span.end:]}'
    elif span.type in ('severity', 'bodyloc', 'course'):
      text = text[:span.start] + text[span.end:].lstrip(' ')
  return text


def test_unknown_cohort_is_an_input_error():
  with pytest.raises(InputError, match=r"'icu' is not one of synthetic_icu, .*synthetic_newsite"):
    generate_cohort('icu')

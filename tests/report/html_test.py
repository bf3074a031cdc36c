"""The report: its numbers by hand, what it must survive, and what must not get onto it."""

import json
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from invented_run import NOTE, SCRIPT, described, entry, invent, line, record, write

from fedmedjax.data.site import Form, read_site
from fedmedjax.data.statistics import site_statistics, used_statistics
from fedmedjax.data.synthetic.cohorts import generate_cohort
from fedmedjax.data.tasks import ask
from fedmedjax.report import Cell, Plot, Table, freshen, write_report
from fedmedjax.report.blocks import NONE, Piece
from fedmedjax.report.cost import points_per_megabyte
from fedmedjax.report.examples import (
  BOUNDARY,
  INVENTED,
  MISSED,
  WRONG_TYPE,
  choose,
  errors,
  pieces,
  sentence,
  verdicts,
)
from fedmedjax.report.headline import headline
from fedmedjax.report.page import breakable
from fedmedjax.report.runs import read_runs
from fedmedjax.report.training_curves import by_site, spread
from fedmedjax.types import Skew, Span


class Page(HTMLParser):
  """The text, tags and ids of a page."""

  def __init__(self, html: str):
    super().__init__()
    self.tags, self.ids, self.asked, self.words = Counter(), Counter(), [], []
    self.feed(html.replace('<wbr>', ''))
    self.text = ' '.join(self.words)

  def handle_starttag(self, tag, attributes):
    self.tags[tag] += 1
    for name, value in attributes:
      if name == 'id':
        self.ids[value] += 1
      if name in ('href', 'src', 'xlink:href') or name.startswith('on'):
        self.asked.append((name, value))

  def handle_data(self, data):
    self.words.append(' '.join(data.split()))


def page(path, runs, **more) -> Page:
  write_report(path, 'a title', runs, **{'examples': 2} | more)
  return Page(path.read_text())


def test_what_is_wrong_with_an_answer():
  """Gold: problem 0-4, drug 10-14, test 20-24, problem 30-34. Predicted: the first; drug 10-12, a
  part of the second; treatment 20-24, the third by another name; drug 40-44, nothing there."""
  gold = [Span(0, 4, 'problem'), Span(10, 14, 'drug'), Span(20, 24, 'test'),
          Span(30, 34, 'problem')]
  predicted = [Span(0, 4, 'problem'), Span(10, 12, 'drug'), Span(20, 24, 'treatment'),
               Span(40, 44, 'drug')]
  assert verdicts(gold, predicted) == (
    ['', BOUNDARY, WRONG_TYPE, MISSED], ['', BOUNDARY, WRONG_TYPE, INVENTED])
  assert errors(record(predicted, gold)) == {
    BOUNDARY: 1, WRONG_TYPE: 1, INVENTED: 1, MISSED: 1}
  # Longer than a problem, and over a drug, too: one of them is its type.
  both = [Span(0, 4, 'problem'), Span(5, 9, 'drug')]
  assert verdicts(both, [Span(0, 9, 'drug')])[1] == [BOUNDARY]
  assert verdicts([Span(0, 4, 'problem')], [Span(0, 5, 'drug')])[1] == [WRONG_TYPE]


@pytest.mark.parametrize(('opening', 'closing'), [('<span class="drug">', '</span>'),
                                                  ('@ * drug * ', ' @')])
def test_the_tags_of_a_main_entity_are_taken_out(opening, closing):
  """By their place: the sentence holds such a tag itself, before the main entity."""
  text = f'A {opening}note{closing} of aspirin, stopped.'
  start = text.index('aspirin')
  marked = text[:start] + opening + 'aspirin' + closing + text[start + 7:]
  assert sentence(record(text=marked, main=[100 + start, 107 + start, 'drug'])) == text
  assert sentence(record(text=text)) == text


def test_a_sentence_is_cut_at_its_spans_and_nothing_is_lost():
  cut = pieces('one two three', [Span(0, 3, 'drug'), Span(2, 5, 'test'), Span(8, 13, 'problem')],
               ['', INVENTED, MISSED], Span(4, 7, 'drug'))
  assert [(piece.text, piece.type, piece.verdict) for piece in cut] == [
    ('one', 'drug', ''), (' ', '', ''), ('two', 'main', ''), (' ', '', ''),
    ('three', 'problem', MISSED)]


def test_kinds_of_errors_take_turns():
  """Ten sentences miss something, one invents, one is right: of three shown one invents."""
  answers = [record([], [(0, 5, 'drug')], start=n) for n in range(10)]
  answers += [record([(0, 5, 'drug')], [], start=50), record([(0, 5, 'drug')], [(0, 5, 'drug')])]
  shown = choose({'a': answers}, 3, seed=1)
  assert [entry.place for entry in shown].count('note_7, character 50') == 1
  assert 'note_7, character 100' not in [entry.place for entry in shown]
  assert shown == choose({'a': answers[::-1]}, 3, seed=1)
  assert choose({'a': answers}, 0, seed=1) == [] and len(choose({'a': answers}, 99, 1)) == 11
  # Sentences that runs answered unlike come first.
  other = [*answers[:7], record([(0, 5, 'drug')], [(0, 5, 'drug')], start=7), *answers[8:]]
  assert choose({'b': other, 'a': answers}, 1, seed=1)[0].place == 'note_7, character 7'


def test_unreadable_answers_are_marked_and_shown_as_they_were_written():
  answers = [record([(0, 5, 'drug')], generated='<span Given', parse_failed=True)]
  found, = choose({'a': answers}, 1, seed=1)
  assert [whose for whose, _ in found.lines] == [
    'annotated', 'a: unreadable answer, what was saved', 'as it was written']
  assert found.lines[-1][1] == [Piece('<span Given')]


def test_columns_of_dashes_are_left_out_and_names_break_after_commas():
  table = Table('a', '', ('x', 'y', 'z'), [('1', NONE, '2'), ('3', Cell(NONE), NONE)])
  assert (table.told().columns, table.told().rows) == (['x', 'z'], [['1', '2'], ['3', NONE]])
  assert table._replace(rows=[('1', NONE, NONE)]).told().rows == ()
  assert breakable('synthetic_dictation 4,884,480') == 'synthetic_dictation 4,884,480'
  assert breakable('fed_medlora,setting=iid') == 'fed_medlora,<wbr>setting=iid'
  assert breakable('a_name_of_many_letters<') == (
    'a_<wbr>name_<wbr>of_<wbr>many_<wbr>letters&lt;')


def test_points_per_megabyte_and_the_spread_of_sites(tmp_path):
  """Mean F1 of the in-domain sites 0.5, 1.5 MB sent: 50 / 1.5. Of 0, 1, ..., 10 a tenth on either
  side is left out: 1 to 9."""
  assert points_per_megabyte(read_runs({'a': invent(tmp_path)})[0]) == pytest.approx(50 / 1.5)
  lines = [line(1, [f's{i}' for i in range(11)], train_loss=[*map(float, range(11))]),
           line(2, ['s0', 's1'], train_loss=[None, 4.0])]
  curves = by_site(lines, 'train_loss')
  assert curves['s0'][0].tolist() == [1] and curves['s1'][1].tolist() == [1, 4]
  rounds, low, middle, high = spread(curves)
  np.testing.assert_allclose((rounds, low, middle, high), ((1, 2), (1, 4), (5, 4), (9, 4)))


def counts(*hits) -> dict:
  """A site's entry of counts.json: notes of 10 gold and 10 predicted entities each."""
  return {'sources': [f'n{i}' for i in range(len(hits))], 'ner': np.stack([
    np.broadcast_to([tp, 10 - tp, 10 - tp], (2, 2, 3)) for tp in hits]).tolist()}


@pytest.mark.parametrize('before, words', [
  # Its own interval where nothing is there to compare with, or was left out.
  (None, 'F1 of 0.500 [95 %: '), (0.0, 'F1 of 0.500 [95 %: '),
  (0.2, 'F1 of 0.500 on 2 sites (2 test notes), 0.300 [95 %: +0.'),
  (0.9, 'below the untrained model, seed 3.'), (0.5, 'which is not told apart from the untrained'),
])
def test_the_sentence_that_a_run_begins_with(tmp_path, before, words):
  """icu 0.6 and ward 0.4 after training. Before it `before`, but for one note of each."""
  zero_shot = None if before is None else {
    'scores': {'icu': {'ner': entry(before)}},
    'answers': {'icu': {'asked': 10, 'copied': 0, 'unreadable': 10 if before == 0 else 0}}}
  run = invent(tmp_path / 'run', summary={
    'scores': {'icu': {'ner': entry(0.6)}, 'ward': {'ner': entry(0.4)},
               'elsewhere': {'ner': entry(0.9)}}, 'zero_shot': zero_shot})
  write(run / 'sites.json', described('icu', 'ward', 'elsewhere'))
  hits = round(10 * (before or 0))
  write(run / 'predictions' / 'counts.json', {
    'scores': {'icu': counts(5, 6, 7, 6, 6), 'ward': counts(4, 4, 3, 5, 4), 'elsewhere': counts(9)},
    'zero_shot': {} if before is None else {
      site: counts(hits - 1, hits + 1, hits, hits, hits) if hits else counts(0, 0, 0, 0, 0)
      for site in ('icu', 'ward')}})
  said = headline(read_runs({'fed_medlora': run})[0])
  assert said.startswith('fed_medlora finds entities with a mean strict F1 of 0.500')
  assert words in said


def test_rates_have_what_they_are_rates_of_and_external_cohorts_are_apart(tmp_path):
  """117 of 120 copied at two sites; 5 annotated of each type at each of them and 5 elsewhere."""
  def answered(asked, copied):
    return {'asked': asked, 'copied': copied, 'unreadable': 0}

  lines = [line(n, ('icu', 'ward'), validation_f1=0.1 * n) for n in (1, 2)]
  run = invent(tmp_path / 'run', lines=lines, summary={'answers': {
    'icu': answered(60, 57), 'ward': answered(60, 60), 'elsewhere': answered(10, 1)}})
  made = page(tmp_path / 'report.html', {'a': run}).text
  plain = ' '.join(made.split())
  for said in ('0.97 117 of 120', '0.10 1 of 10', '0.95 57 of 60'):
    assert said in plain, said
  assert 'of answers copy their sentence (117 of 120)' in made
  # Of `entry`: 4 annotated and 3 found of a type at each site.
  assert re.search('problem 0.500 0.750 8 6 2 4 3', plain)
  assert 'F1 while training, for the bytes sent' in made
  assert made.index('a finds entities with a mean strict F1 of 0.500') < made.index('Scores')
  held = json.loads((run / 'summary.json').read_text())
  write(run / 'summary.json', held | {'warnings': ['all is lost']})
  several = page(tmp_path / 'several.html', {'a': run, 'b': run}).text
  assert 'all runs: all is lost' in several
  assert 'F1 while training, for the bytes sent' in several and 'copied, external' in several


def test_text_of_others_stays_text(tmp_path):
  """In a note, the name of a site, of a regime, a setting, a finding."""
  run = invent(
    tmp_path / 'run', sites=(SCRIPT.replace('/', '|'), '$x^2$'),
    config={'data.root': f'</dd>{SCRIPT}'})
  write(run / 'sites.json', described(SCRIPT, '</svg><img src=x onerror=alert(1)>'))
  runs = {f'api:{SCRIPT}': run, '</title><b>x</b>&': run}
  made = page(tmp_path / 'report.html', runs, sentences=[f'finding {SCRIPT}'], tables=[
    Table('t', 'n', ('a', SCRIPT), [(SCRIPT, 'x')])], plots=[
    Plot(SCRIPT, '', SCRIPT, {SCRIPT: [(1, 0.5, None, None), (2, 0.75, 0.5, 1)]})])
  # All tags are those of the templates and of matplotlib.
  assert not made.tags.keys() & {'script', 'img', 'iframe', 'link', 'object'}
  assert made.asked and all(name == 'href' and value[0] == '#' for name, value in made.asked)
  assert made.text.count('document.title') > 10
  # Nor is a label a formula.
  assert '>$x^2$</text>' in (tmp_path / 'report.html').read_text()
  assert max(made.ids.values()) == 1


def test_excerpts_only_when_asked_for(tmp_path):
  run = invent(tmp_path / 'run')
  shown = page(tmp_path / 'report.html', {'a': run}).text
  assert 'zyxwarts' in shown and 'note_7' in shown and 'wrong type' in shown
  none = (tmp_path / 'none.html')
  write_report(none, 'a title', {'a': run}, examples=0)
  for word in (*re.findall(r'\w+', NOTE), 'note_7'):
    if word not in ('script', 'document', 'title', 'for', 'rest', 'owned'):
      assert word not in none.read_text(), word
  assert 'No text of a note is shown' in none.read_text()


def test_a_report_is_made_again_only_when_it_would_be_another(tmp_path):
  run = invent(tmp_path / 'a_run')
  freshen(run, 2)
  first = (run / 'report.html').read_bytes()
  (run / 'report.html').unlink()
  freshen(run, 2)
  assert (run / 'report.html').read_bytes() == first and b'<h1>a_run' in first
  before = (run / 'report.html').stat().st_mtime_ns
  freshen(run, 2)
  assert (run / 'report.html').stat().st_mtime_ns == before
  freshen(run, 0)
  assert b'zyxwarts' in first and b'zyxwarts' not in (run / 'report.html').read_bytes()


def test_rounds_without_losses_and_runs_of_one_round(tmp_path):
  skipped = {key: value for key, value in line(1, ('icu', 'ward')).items()
             if key not in ('train_loss', 'validation_loss', 'update_norm', 'cosine',
                            'product_gap', 'quarantined')} | {'skipped': True}
  bad = line(2, ('icu', 'ward'), train_loss=[None, 0.5], quarantined=['icu'])
  made = page(tmp_path / 'a.html', {'a': invent(tmp_path / 'a', lines=[skipped, bad])}).text
  assert 'skipped, as no site had anything usable to send: round 1.' in made
  assert 'icu in round 2.' in made
  # Of a finished run all rounds may lack a number.
  nothing = page(tmp_path / 'b.html', {'b': invent(tmp_path / 'b', lines=[skipped])})
  assert 'Training loss' not in nothing.text and 'Weight of a site' in nothing.text


def test_what_weighs_has_its_name_and_unit(tmp_path):
  """Losses in unlike units share no chart; what compares sites has no mean over them."""
  lines = [line(n, ('icu', 'ward'), validation_loss=[0.5 * n, 1.5]) for n in (1, 2)]
  runs = {name: invent(tmp_path / name, lines=lines, config={'fed.signal': name})
          for name in ('loss', 'answer', 'peer')}
  alone = page(tmp_path / 'alone.html', {'peer': runs['peer']}).text
  assert 'Judgement by the other sites' in alone and 'nats per answer' in alone
  assert 'Validation loss' not in alone
  made = page(tmp_path / 'all.html', runs).text
  assert 'Validation loss' in made and 'Validation loss of an answer' in made
  assert 'Judgement by the other sites' not in made


def test_hundreds_of_sites(tmp_path):
  """Dealt out of a pool: bands instead of lines, and what is not drawn is said."""
  parts = [f'part_{i:03}' for i in range(300)]
  run = invent(tmp_path / 'run', lines=[line(n, parts) for n in (1, 2)], summary={
    'train_examples': [1] * 300, 'partition': Skew((1,) * 200 + (7,) * 100, 0.1234, 0.5)._asdict()})
  write(run / 'sites.json', described(*parts[:20], 'icu', 'ward') | {'training_sites': 300})
  made = page(tmp_path / 'report.html', {'a': run})
  assert '300 sites: a line is the median' in made.text and '278 more sites train' in made.text
  assert 'Drawn are the first 12 of 22 sites' in made.text
  assert ('dealt out: 300 sites of 1 to 7 (median 1), entity types diverge by 0.123 bits, 50% of '
          'types annotated.') in made.text
  assert (tmp_path / 'report.html').stat().st_size < 400_000
  # Tested ones may be many, too, and regimes.
  many = invent(tmp_path / 'many', sites=parts[:40], external=())
  made = page(tmp_path / 'many.html', {f'regime {i}': many for i in range(12)})
  assert 'Drawn are the first 12 of 40 sites. Drawn are the first 8 of 12 rows.' in made.text


def test_all_regimes_on_one_page(tmp_path):
  """Relations, private factors, zero-shot, an endpoint, a BERT; sites across."""
  related = {'ner': entry(0.5), 're': {
    'modifier': entry(0.4, kinds=[f'kind_{i}' for i in range(16)]), 'triple': entry(0.3),
    'end_to_end': entry(0.2)}}
  cross = {site: {other: {'ner': entry(0.9 if site == other else 0.1)}
                  for other in ('icu', 'ward', 'elsewhere')} for site in ('icu', 'ward')}
  personal = {site: {'ner': entry(0.25)} for site in ('icu', 'ward', 'elsewhere')}
  main = record([], [(0, 5, 'route')], task='re', main=[106, 112, 'drug'], text=NOTE.replace(
    'script', '<span class="drug">script</span>', 1))
  silent = {'rounds': 0, 'bytes_up': 0, 'bytes_down': 0, 'bytes_full_model': 0}
  runs = {
    'zero_shot': invent(
      tmp_path / 'zero', lines=[], summary=silent, config={'fed.preset': 'zero_shot'}),
    'single_site': invent(tmp_path / 'single', summary={'cross_site': cross}),
    'fedsa_lora': invent(tmp_path / 'own', summary={'global': {'scores': personal}}),
    'joint': invent(tmp_path / 'joint', summary={'scores': {
      'icu': related, 'ward': {'re': related['re']}, 'elsewhere': {'ner': entry(0.5)}}},
      records=[main, main | {'task': 'end_to_end'}]),
    'api:gpt': invent(tmp_path / 'api', lines=[], summary=silent | {'api': {
      'answers': 7, 'cached': 1, 'input_tokens': None, 'output_tokens': 5, 'usd': None,
      'failed': 2}}),
  }
  runs['pooled'] = invent(tmp_path / 'pooled', lines=[line(1, ['pooled'], bytes_up=0)])
  # What older runs, and those behind an endpoint, do not have.
  path = runs['api:gpt'] / 'summary.json'
  path.write_text(json.dumps({
    key: value for key, value in json.loads(path.read_text()).items() if key not in (
      'adapter_parameters', 'base_parameters', 'partition', 'global', 'versions')}))
  made = page(tmp_path / 'report.html', runs)
  for said in ('fedsa_lora (global)', 'End to end', 'kind_15', 'Across sites', 'tokens written',
               'main', 'Weights of fedsa_lora', 'What sets the regimes apart', '0.90', '0.10'):
    assert said in made.text, said
  assert max(made.ids.values()) == 1
  alone = page(tmp_path / 'joint.html', {'joint': runs['joint']})
  assert 'strict F1 of modifiers, mean of 2 sites' in alone.text


def test_what_a_run_uses_of_a_site_is_described_as_its_corpus_is():
  """With nothing held out and all tested, both ways of counting agree."""
  corpus = generate_cohort('synthetic_icu')
  forms = [
    Form(ask(task, corpus), np.zeros(1, np.int32), lambda found: (found, {}), list, '')
    for task in ('ner', 're')]
  whole, used = site_statistics(corpus), used_statistics(read_site(corpus, forms))
  assert whole.entities == used.entities and whole.vocabulary == used.vocabulary
  assert (whole.train_notes, whole.test_notes) == (used.train_notes, used.test_notes)
  np.testing.assert_array_equal(whole.note_words, used.note_words)
  # Those of main entities that flat markup cannot hold are not used.
  assert 0.9 < used.modifiers.total() / whole.modifiers.total() <= 1
  # Relations alone: their main entities, once each.
  related = used_statistics(read_site(corpus, forms[1:]))
  assert related.modifiers == used.modifiers
  assert sum(related.entities.values()) <= sum(used.entities.values())

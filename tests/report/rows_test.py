"""Own tasks in tables, sentences and pages: numbers by hand, and what must not get onto a page."""

import html
import json
import re

import numpy as np
import pytest
from chromium import WIDTHS, looked_at
from invented_rows import ELSEWHERE, SITES, described_rows, invent_rows, row
from invented_run import line, write
from rich.console import Console

from fedmedjax import report
from fedmedjax.compare import comparisons, tables
from fedmedjax.compare.comparisons import Draws, Runs
from fedmedjax.compare.contents import contents_of
from fedmedjax.data.site import Form, read_site
from fedmedjax.data.statistics import site_statistics
from fedmedjax.data.tasks import ask
from fedmedjax.eval import paired
from fedmedjax.eval.intervals import Estimate
from fedmedjax.eval.paired import read_answers
from fedmedjax.predict.trained import read_trained
from fedmedjax.report import charts, description, terminal, text_tables
from fedmedjax.report.headline import headline
from fedmedjax.report.next_steps import next_steps
from fedmedjax.report.runs import read_runs
from fedmedjax.report.text_answers import choose_rows
from fedmedjax.report.warnings import warnings
from fedmedjax.store import files, points, tensorboard
from fedmedjax.types import Document, InputError, SiteCorpus

# Of ten rows nine and seven are answered rightly; of the other run six and four.
GOOD = {'icu': [1] * 9 + [0], 'ward': [1] * 7 + [0] * 3, ELSEWHERE: [1, 0]}
POOR = {'icu': [1] * 6 + [0] * 4, 'ward': [1] * 4 + [0] * 6, ELSEWHERE: [0, 0]}
DRAWS = Draws(0, 200)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """{regime: its folder}."""
  folder = tmp_path_factory.mktemp('rows')
  return {
    'fed_medlora': invent_rows(folder / 'good', GOOD),
    'single_site': invent_rows(folder / 'poor', POOR, summary={
      'cross_site': {site: {other: {'text': {'exact_match': {'value': value, 'ci95': None},
                                             'my.gain': {'value': -value, 'ci95': None}}}
                            for other, value in zip(
                              (*SITES, ELSEWHERE), (0.9, 0.2, 0.1), strict=True)}
                     for site in SITES}})}


def loaded(folders, seeds: int = 1) -> dict[str, Runs]:
  """The runs of a comparison; with more seeds the same ones again."""
  out = {}
  for name, folder in folders.items():
    summary, counted = files.read_json(folder / 'summary.json'), read_answers(
      folder / 'predictions')
    out[name] = Runs(
      (summary | {'zero_shot': None},) * seeds, (counted['scores'],) * seeds, ({},) * seeds,
      ({},) * seeds)
  return out


def printed(table) -> str:
  with (console := Console(width=220)).capture() as shown:
    console.print(table)
  return ' '.join(re.sub('[^\\S ]|[─-╿]', ' ', shown.get()).split())


def page(path, runs, **more) -> str:
  """The text of a page."""
  report.write_report(path, 'a title', runs, **{'examples': 2} | more)
  shown = re.sub('<style>.*?</style>|<wbr>', '', path.read_text(), flags=re.DOTALL)
  return ' '.join(html.unescape(re.sub('<[^>]*>', ' ', shown)).split())


def test_the_last_screen_of_a_run(runs, capsys):
  """Exact match 0.9 and 0.7, mean 0.8, elsewhere 0.5, all 0 before training; of each gain -2 or -4:
  -2.2 and -2.6; and a number for all rows. Nothing was read, so nothing is unreadable."""
  summary = files.read_json(runs['fed_medlora'] / 'summary.json')
  said = printed(text_tables.text_score_table(summary))
  for words in (
      'site exact match my.gain whole zero-shot exact match zero-shot my.gain zero-shot whole',
      'icu 0.900 -2.200 7.250 0.000 -4.000 7.250', 'ward 0.700 -2.600 7.250',
      'elsewhere (external)', 'mean of the sites 0.800 -2.400 7.250 0.000', '[0.80,0.90]',
      'elsewhere has 2'):
    assert words in said, words
  terminal.show(summary, terminal.Reporter(), runs['fed_medlora'])
  out = capsys.readouterr().out
  assert 'exact copies' not in out and 'F1' not in out and 'Scores, fed_medlora' in out
  told = ' '.join(terminal.api_lines(summary | {'api': {
    'answers': 2, 'shots': 0, 'cached': 0, 'requests': 2, 'input_tokens': 1, 'output_tokens': 1,
    'usd': None, 'failed': 0}}))
  assert 'copies' not in told and 'unreadable' not in told and '2 questions' in told
  # Six metrics of three kinds of answers are too many columns: beside them stands the first alone.
  many = {f'm{i}': {'value': 0.5, 'ci95': None} for i in range(6)}
  few = summary | {'scores': {'icu': {'text': many}}, 'zero_shot': {'scores': {
    'icu': {'text': many}}, 'trained': {'icu': {'text': many}}, 'sentences': {'icu': 3}}}
  said = printed(text_tables.text_score_table(few))
  assert 'm5 zero-shot m0 ' in said and 'zero-shot m1' not in said
  assert 'Zero-shot is of 3 rows a cohort, on which the run has a mean m0 of 0.500' in said


def test_what_comes_after_an_own_task(runs, tmp_path):
  (tmp_path / 'adapter').mkdir()
  (tmp_path / 'adapter' / 'adapter_config.json').write_text('{}')
  summary = files.read_json(runs['fed_medlora'] / 'summary.json')
  _, *said = next_steps(tmp_path, summary, 'lora', ['--config=c.py'])
  assert [one.split()[0] for one in said] == ['report', 'adapter', 'compare']
  assert "in PEFT's format" in said[1]
  for name in ('config.json', 'summary.json'):
    (tmp_path / name).write_text((runs['fed_medlora'] / name).read_text())
  for types in ('', 'drug'):
    with pytest.raises(InputError, match='own task.*annotates notes only') as error:
      read_trained(tmp_path, {}, '', types)
    assert '\n' not in str(error.value) and str(tmp_path) in str(error.value)


def test_points_for_tensorboard(runs, tmp_path):
  """A metric may have the name of a key that other tasks have."""
  scores = {'text': {'text': {'typed': {'value': 0.5, 'ci95': None},
                              'value': {'value': 3.0, 'ci95': None}}}}
  assert points.of_scores(scores) == {
    'score/text/text/typed': 0.5, 'score/text/text/value': 3.0}
  tensorboard.finish(tmp_path, [], files.read_json(runs['fed_medlora'] / 'summary.json'))
  assert b'score/icu/text/my.gain' in (tmp_path / tensorboard.FILE).read_bytes()


def test_regimes_beside_each_other(runs):
  """0.8 and 0.5 over the same ten rows of each: 0.3 and 0.3 are gained; of 'my.gain' 2 x 0.3."""
  rows = loaded(runs)
  said = printed(text_tables.text_comparison(
    {name: one.summaries[0] for name, one in rows.items()}, SITES, (ELSEWHERE,)))
  assert ('regime icu ward mean elsewhere (external) mean my.gain mean whole steps MB sent '
          'fed_medlora 0.900 0.700 0.800 0.500 -2.400 7.250 8 2 ') in said
  assert comparisons.scores_of(rows.values()) == ['text.exact_match', 'text.my.gain']
  found = comparisons.comparisons(rows, 'in_domain', '', DRAWS)
  values = {(one.score, one.where): one.estimate.value for one in found}
  inside, outside = 'mean of 2 sites', 'elsewhere (external)'
  assert values == pytest.approx({
    ('text.exact_match', inside): 0.3, ('text.exact_match', outside): 0.5,
    ('text.my.gain', inside): 0.6, ('text.my.gain', outside): 1.0})
  assert '(exact match, mean of 2 sites, 20 sources; ' in str(found[0])
  assert found[0].record()['score'] == 'text.exact_match'
  contents = contents_of('in_domain', {'': rows}, DRAWS)
  assert contents.first.startswith(
    'Of 2 regimes, fed_medlora has the highest mean exact match, 0.800, 0.300 [95 %: ')
  gains = {table.title: table for table in contents.tables}
  assert gains['Exact match: who gains by joining'].columns[1:3] == ('worst site', 'best − worst')
  # Of a metric of one's own, less may be better.
  own = gains['my.gain: who gains by joining']
  assert own.columns[1:3] == ('lowest site', 'highest − lowest')
  assert own.rows[0][1] == ('-2.600', 'ward') and own.note.startswith('my.gain of the lowest site')


def test_seeds_of_an_own_task(runs):
  """Means over seeds, intervals where there are counts, none for a number of all rows."""
  out = comparisons.merged(loaded(runs, seeds=2)['fed_medlora'], DRAWS)
  found = out['scores']['ward']['text']
  assert found['exact_match']['value'] == pytest.approx(0.7)
  low, high = found['my.gain']['ci95']
  assert low < -2.6 < high and found['whole'] == {'value': 7.25, 'ci95': None}
  assert out['copy_rate'] is None
  table = tables.seeds_table(loaded(runs, seeds=2), 'text.my.gain', DRAWS)
  assert table.title == 'my.gain: 2 seeds' and table.rows[0][3].text == '-2.400'


def test_other_scenarios_of_an_own_task(runs):
  """Curves have the metric's name; a new site has rows."""
  rows = loaded(runs)
  new = {'10': {'local only': rows['single_site'], 'fed_medlora': rows['fed_medlora']},
         '0': {'local only': rows['single_site'], 'fed_medlora': rows['single_site']}}
  found = contents_of('new_site', new, DRAWS)
  title = 'A new site, fine-tuned on so many of its rows: exact match'
  assert found.tables[0].title == found.plots[0].title == title and found.plots[0].x_label == 'rows'
  assert found.tables[0].note.startswith('Exact match [95 % by source]')
  scaled = contents_of('scaling', {'2': rows, '4': rows}, DRAWS)
  assert scaled.tables[0].title == 'Rows dealt out to so many sites: exact match'
  assert any('fed_medlora, 4 sites' in str(one) for one in scaled.comparisons)
  left = contents_of('leave_one_out', {'icu': rows}, DRAWS)
  assert left.first.startswith('Of 2 regimes, fed_medlora has the highest mean exact match, 0.500')


def test_the_page_of_a_run(runs, tmp_path):
  """All sections but those of types: the first sentence, figures, sites, answers, no quoted row."""
  run, = (one for one in read_runs({'fed_medlora': runs['fed_medlora']}) if one.own)
  first = headline(run)
  assert first.startswith('fed_medlora answers with a mean exact match of 0.800 on 2 sites (8 test '
                          'rows), 0.800 [95 %: +0.')
  assert first.endswith('above the untrained model, seed 3.')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(paired, 'difference', lambda *args, **draws: Estimate(0.0, None, None))
    assert headline(run).endswith('test rows), as the untrained model, seed 3.')
  said = page(tmp_path / 'none.html', {'fed_medlora': runs['fed_medlora']}, examples=0)
  for words in (
      first, 'exact match, mean of 2 sites', 'at the worst of them, ward',
      'at the lowest of them, ward', 'icu 0.900 0.80 to 0.90 0.000',
      'mean of the sites 0.800 0.61 to 0.99 0.000 -2.400 -2.79 to', 'my.gain, whole: of your own',
      'Exact match points per MB', 'Exact match while training, for the bytes sent',
      # Of 16 rows 12 have the commonest target.
      'icu 10 2 4 17 1 2 75%', 'icu 12, 4', '3 leaked rows', 'How unlike: vocabulary',
      # Of ten answers nine are 'yes', the tenth 'no'.
      'icu 10 9 0 2 90% 9 of 10', 'No text of a row is shown: config.report.examples says when.'):
    assert words in said, words
  for words in ('F1', 'unreadable', 'copied', 'entities', 'Types', 'How unlike: targets',
                'zyxwarts', 'row_009'):
    assert words not in said, words


def test_the_page_of_several_runs(runs, tmp_path):
  """Rows that were answered wrongly are quoted where that is allowed, and only there."""
  said = page(tmp_path / 'two.html', runs, examples=2, first='The first.', plots=[])
  for words in (
      'fed_medlora 0.800 0.700 0.900', 'Exact match by regime', 'my.gain by regime',
      'lowest site', 'Exact match against megabytes sent', 'Across sites',
      'Exact match. Rows: whose adapter, or which regime', 'Right answers by target',
      'yes 0.80 16 of 20', 'asked Given <script>', 'target yes', '2 rows',
      'zyxwarts today. Question'):
    assert words in said, words
  page(tmp_path / 'none.html', runs, examples=0)
  assert '<details class="excerpts"' in (tmp_path / 'two.html').read_text()
  assert '<details class="excerpts"' not in (tmp_path / 'none.html').read_text()


def test_rows_that_were_answered_wrongly():
  """Those that runs answered unlike come first; long texts lose their middle, and nothing else."""
  long = 'word ' * 400 + 'last?'
  ours = [row(1, 'no', 'yes'), row(2, 'no', 'yes'), row(3, ' yes\n', 'yes'),
          row(4, long, '', model_input=f'{long}\n')]
  theirs = [row(1, 'no', 'yes'), row(2, 'yes', 'yes'), row(4, long, '')]
  found = choose_rows({'theirs': theirs, 'ours': ours}, 9, 0)
  assert {entry.place for entry in found} == {'row_001', 'row_002', 'row_004'}
  assert found[0].place == 'row_002'
  shown = {entry.place: dict(entry.lines) for entry in found}['row_004']
  assert len(shown['asked'][0].text) < 620 and shown['asked'][0].text.endswith(' last?')
  assert shown['target'][0].text == '(empty)' and '…' in shown['ours'][0].text
  assert choose_rows({'ours': ours}, 0, 0) == []
  # Kept without text there is nothing to show, and a page is made all the same.
  assert choose_rows({'ours': [{'document': 'a', 'task': 'text', 'sentence_start': 0}]}, 9, 0) == []


@pytest.mark.parametrize('answers, said', [
  (['yes', 'no'], ''), (['no', 'no '], 'answer at icu, and unlike targets: the model has not'),
  (['', ' '], 'answer at icu (an empty one), and')])
def test_a_model_that_always_says_the_same(answers, said, tmp_path):
  """Not so where all targets are the same, too."""
  for site, targets in (('icu', ('yes', 'no')), ('ward', ('no', 'no'))):
    write(tmp_path / f'{site}.jsonl', *(
      row(n, *pair) for n, pair in enumerate(zip(answers, targets, strict=True))), lines=True)
  summary = {'scores': dict.fromkeys(SITES, {'text': {}}), 'external': [], 'local_steps': 2,
             'too_long': {'examples': 5, 'of_examples': 50, 'entities': 0, 'of_entities': 0}}
  found, *more = warnings(summary, [line(1, SITES)], tmp_path)
  assert found == ('5 of 50 examples (10.0%) of the training and validation rows are longer than '
                   'config.data.max_length and were left out; raise config.data.max_length')
  assert said in ''.join(more) and len(more) == bool(said)


def test_axes_of_scores_that_leave_the_unit_interval():
  assert charts.limits(np.array([0.2, np.nan]), np.array([[0.1, 1.0]])) == (0.0, 1.0)
  assert charts.limits(np.full(2, np.nan)) == (0.0, 1.0)
  assert charts.limits(np.array([-4.0, -2.0])) == pytest.approx((-4.2, 0.0))
  assert charts.limits(np.array([0.5, 200.0])) == pytest.approx((0.0, 210.0))
  drawn = charts.dots('k', 'd', ['a'], np.array([[-4.0]]), 'x', np.full((1, 1, 2), np.nan), [0])
  assert '>-4.000</text>' in drawn


def corpus(name: str, targets: str) -> SiteCorpus:
  notes = [Document(f'{name}{i}', f'Given aspirin {i}?', (), (), target=target)
           for i, target in enumerate(targets)]
  return SiteCorpus(name, (), tuple(notes[:-2]), tuple(notes[-2:]), {'leaked_documents': 1})


def test_sites_of_rows_are_counted_and_not_quoted(tmp_path, capsys):
  """Of a's six rows four say y: H(4/6) and b's H(3/6), their mean mix 7/12: 0.0207 bits apart."""
  corpora = [corpus('a', 'yyyynn'), corpus('b', 'ynynyn')]
  sites = [read_site(one, [Form(
    ask('text', one), np.zeros(1, np.int32), lambda found: (found, {}), list, '')])
    for one in corpora]
  said = printed(terminal.site_table(sites, sites, []))
  assert 'Sites, in rows' in said and 'a 4 0 2 2 (the commonest 67%) 1 leaked rows' in said
  told = description.used(sites, sites, [])
  assert told['sites']['a']['targets'] == {
    'rows': 6, 'different': 2, 'commonest': 4, 'counts': [4, 2], 'words_quantiles': [1.0] * 5}
  assert told['jensen_shannon_bits']['targets'][0][1] == pytest.approx(0.0207, abs=1e-4)
  assert told['jensen_shannon_bits'].keys() == described_rows('a')['jensen_shannon_bits'].keys()
  assert told['examples']['a'] == {'text': {'train': 4, 'validation': 0, 'test': 2}}
  description.describe(
    [site_statistics(one) for one in corpora], ['b'], tmp_path,
    terminal.Reporter(Console(width=200)))
  out = ' '.join(capsys.readouterr().out.split())
  assert 'divergence of targets' in out and 'modifiers' not in out and '66.7%' in out
  assert 'words a target' in (tmp_path / 'description.svg').read_text()
  assert json.loads((tmp_path / 'description.json').read_text())['sites']['b']['external']


@pytest.fixture(scope='module')
def pages(runs, tmp_path_factory):
  folder = tmp_path_factory.mktemp('pages')
  for name, some in (('run', {'fed_medlora': runs['fed_medlora']}), ('two', runs)):
    report.write_report(folder / f'rows_{name}.html', name, some, examples=3)
  return folder


@pytest.mark.parametrize('name', ['run', 'two'])
def test_a_page_of_rows_fits(browser, pages, tmp_path, name):
  found, console = looked_at(browser, tmp_path, 'light', pages / f'rows_{name}.html')
  assert console == []
  for width in WIDTHS:
    one = found[str(width)]
    assert one['page'] <= width and one['narrow'] == [] and one['pale'] == [], (width, one)

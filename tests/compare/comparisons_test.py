"""What a comparison says: pairs, sentences, seeds put together, who gains."""

import numpy as np
import pytest

from fedmedjax.compare import comparisons, tables
from fedmedjax.compare.comparisons import Draws, Runs
from fedmedjax.compare.headline import headline
from fedmedjax.compare.scenarios import LOCAL
from fedmedjax.eval import metrics
from fedmedjax.eval.paired import NoteCounts

DRAWS = Draws(0, 200)
TYPES = ('drug',)


def answers(**hits):
  """{site: ...} from the true positives of its notes, of 10 gold and 10 predicted entities each."""
  return {
    site: {'ner': NoteCounts(tuple(f'{site}{i}' for i in range(len(row))), np.stack([
      np.broadcast_to([tp, 10 - tp, 10 - tp], (2, 2, 3)) for tp in row]))}
    for site, row in hits.items()}


def runs(*seeds, external=('out',), cross=(), losses=()) -> Runs:
  """One run a seed, with the summaries that such counts give; `losses` on V by adapter."""
  summaries = tuple({
    'seed': number, 'sites': [site for site in held if site not in external],
    'external': [site for site in held if site in external], 'global': None, 'preset': 'x',
    'wall_seconds': 10.0 * number, 'local_steps': 4,
    'scores': {site: {'ner': metrics.scores(
      scores['ner'].counts.sum(0), TYPES, metrics.bootstrap_f1(scores['ner'].counts, 0, 50))}
      for site, scores in held.items()}} for number, held in enumerate(seeds, 1))
  none = ({},) * len(seeds)
  return Runs(summaries, seeds, tuple(cross) or none, none, tuple(losses) or none)


def shown(table) -> dict[str, list[str]]:
  """{row: its cells, what is below in brackets}."""
  return {name: [' '.join(filter(None, (cell,) if isinstance(cell, str) else cell))
                 for cell in cells] for name, *cells in table.rows}


@pytest.fixture(scope='module')
def rows():
  """F1 is hits / 10. Own adapters: 0.5 at a, 0.6 at b; a's is 0.5, 0.2 there, b's 0.3, 0.6."""
  cross = {
    'a': answers(a=[5, 5], b=[2, 2], out=[3, 3]), 'b': answers(a=[3, 3], b=[6, 6], out=[1, 1])}
  return {
    'single_site': runs(answers(a=[5, 5], b=[6, 6], out=[2, 2]), cross=[cross],
                        losses=[{'a': 0.9, 'b': 0.7}]),
    'fed_medlora': runs(answers(a=[6, 8], b=[6, 6], out=[4, 4])),
    'api:some model': runs(answers(a=[9, 9], b=[9, 9], out=[9, 9]))}


def test_every_method_meets_every_baseline(rows):
  """fed_medlora: 0.7 and 0.6, mean 0.65. Of its notes at a it gains 0.1 and 0.3 over single_site,
  so the mean of both sites 0.05 and 0.15: error 0.05, and t 12.7 for two notes. Elsewhere all notes
  gain alike, and there is no interval. V chooses b's adapter, also where a's does better."""
  found = comparisons.comparisons(rows, 'in_domain', '', DRAWS)
  values = {(one.where, one.theirs): one.estimate.value for one in found}
  inside, outside = 'mean of 2 sites', 'out (external)'
  together = 'single_site (all of them, counts added)'
  assert values == {
    (inside, 'single_site (each its own)'): pytest.approx(0.1),
    (inside, 'best single site (b)'): pytest.approx(0.2),
    (inside, 'api:some model'): pytest.approx(-0.25),
    (outside, together): pytest.approx(0.2),
    (outside, 'best single site (b)'): pytest.approx(0.3),
    (outside, 'api:some model'): pytest.approx(-0.5)}
  first = found[0].estimate
  assert first.high - 0.1 == pytest.approx(0.635, rel=0.15) == 0.1 - first.low
  assert str(found[0]) == (
    f'fed_medlora − single_site (each its own): +0.100 [{first.low:+.3f}, {first.high:+.3f}] '
    '(entities, mean of 2 sites, 4 sources; 0 is in the interval; one seed: how training varies is '
    'left out; 2 sources only: how notes vary beyond them is hardly known)')
  assert str(found[3]).startswith(f'fed_medlora − {together}: +0.200 (no interval) (')
  assert found[0].record()['estimate']['low'] == pytest.approx(first.low)


def test_many_comparisons_are_corrected(rows):
  """Three of six have an interval, so a p; the smallest is tripled."""
  plain = comparisons.comparisons(rows, 'in_domain', '', DRAWS)
  found = comparisons.corrected(plain)
  known = sorted(one.estimate.p for one in plain if one.estimate.p is not None)
  assert {one.family for one in found} == {len(known)} == {3}
  least = min((one for one in found if one.holm is not None), key=lambda one: one.holm)
  assert least.holm == pytest.approx(min(1, 3 * known[0]))
  assert f'of 3 comparisons by Holm {least.holm:.3f}' in str(least)
  assert 'Holm' not in str(plain[0])


def test_equal_runs_have_no_interval(rows):
  same = rows | {'uniform': rows['fed_medlora']}
  sentence, = {
    str(one) for one in comparisons.comparisons(same, 'in_domain', '', DRAWS)
    if (one.ours, one.theirs, one.where) == ('uniform', 'fed_medlora', 'mean of 2 sites')}
  assert ': +0.000 (no interval) (' in sentence and '0 is in the interval' not in sentence


def test_the_best_single_site_is_chosen_on_v_seed_by_seed():
  """Test notes prefer x with both seeds; V prefers y with the first one. Sites that were dealt out
  have the same names with each seed and are others: their rows are not put together by name."""
  cross = [{'x': answers(a=[9, 9]), 'y': answers(a=[1, 1])}] * 2
  row = runs(*[answers(a=[5, 5])] * 2, cross=cross,
             losses=[{'x': 2.0, 'y': 1.0}, {'x': 1.0, 'y': np.inf}])
  name, found = comparisons.best_single_site(row)
  assert name == 'best single site (y, x)'
  assert found == [cross[0]['y'], cross[1]['x']]
  assert list(tables.matrix({'single_site': row})) == ['x', 'y']
  dealt = row._replace(summaries=tuple(one | {'partition': {'sizes': (2, 2)}}
                                         for one in row.summaries))
  assert list(tables.matrix({'single_site': dealt})) == [name]
  assert comparisons.best_single_site(row._replace(validation=({}, {'x': 1.0}))) is None


def test_only_sites_that_have_a_score_are_in_its_mean(rows):
  """Of two sites one has modifiers: the sentence names it, and what is compared."""
  def related(runs, hits):
    counts = answers(b=hits)['b']['ner']
    return runs._replace(scores=tuple(
      held | {'b': held['b'] | {'re.modifier': counts}} for held in runs.scores))

  pair = {'zero_shot': related(rows['single_site'], [1, 1]),
          'fed_medlora': related(rows['fed_medlora'], [3, 3])}
  found = [one for one in comparisons.comparisons(pair, 'in_domain', '', DRAWS)
           if one.score == 're.modifier']
  assert [(one.where, one.sources) for one in found] == [('b', 2)]
  assert found[0].estimate.value == pytest.approx(0.2)
  # Regimes may score unlike sites; what all have is shown.
  less = rows['fed_medlora']._replace(scores=(
    {'a': rows['fed_medlora'].scores[0]['a'], 'b': {}},))
  both = {'x': rows['fed_medlora'], 'y': less}
  assert tables.spread_table(both, 'ner', DRAWS).columns[3:] == ('a',)


def test_seeds_are_put_together(rows):
  """F1 of a 0.6 and 0.8: 0.7, error 0.1, with one note, and t 12.7 for two seeds: 0 to 1."""
  both = runs(answers(a=[6]), answers(a=[8]))
  out = comparisons.merged(both, DRAWS)
  entry = out['scores']['a']['ner']['strict']
  assert entry['typed']['f1'] == pytest.approx(0.7)
  assert entry['typed']['ci95'] == [0, 1]
  assert entry['untyped']['f1'] == pytest.approx(0.7) and entry['untyped']['ci95'] is None
  assert (out['seeds'], out['seed'], out['wall_seconds']) == ([1, 2], 1, 15.0)
  assert repr(out['local_steps']) == '4'
  assert out['sites'] == ['a'] and out['preset'] == 'x'
  one = rows['fed_medlora']
  assert comparisons.merged(one, DRAWS) is one.summaries[0]
  found, = comparisons.comparisons(
    {'zero_shot': runs(answers(a=[1]), answers(a=[1])), 'fed_medlora': both}, 'scaling', '8 sites',
    DRAWS)
  assert str(found).endswith(
    '(entities, 8 sites, a, 1 source, 2 seeds; 0 is in the interval; one source: how notes vary is '
    'left out)')
  table = tables.seeds_table({'fed_medlora': both}, 'ner', DRAWS)
  assert table.title == 'Entities: 2 seeds'
  assert shown(table) == {'fed_medlora': ['0.700 [0.00, 1.00]', '0.700 [0.00, 1.00]']}
  assert tables.seeds_table({'fed_medlora': one}, 'ner', DRAWS) is None


def test_tables_of_who_gains_and_of_adapters_across_sites(rows):
  gains = shown(tables.spread_table(rows, 'ner', DRAWS))
  assert gains['fed_medlora'] == ['0.600 b', '0.100', '+0.200 [-1.00, +1.00]', '+0.000']
  assert gains['single_site'] == ['0.500 a', '0.100', '-', '-']
  assert shown(tables.cross_site_table(rows, 'ner', DRAWS)) == {
    'a': ['0.500', '0.200', '0.300'], 'b': ['0.300', '0.600', '0.100'],
    'fed_medlora': ['0.700', '0.600', '0.400'], 'api:some model': ['0.900'] * 3}
  personal = rows['fed_medlora']._replace(
    cross_site=rows['single_site'].cross_site, everyone=(answers(a=[1, 1], b=[2, 2], out=[3, 3]),))
  both = shown(tables.cross_site_table(rows | {'fedsa_lora': personal}, 'ner', DRAWS))
  assert both['fedsa_lora (global)'] == ['0.100', '0.200', '0.300'] and 'fedsa_lora' not in both
  alone = {'single_site': rows['single_site']._replace(cross_site=({},))}
  assert tables.cross_site_table(alone, 'ner', DRAWS) is None


def test_a_new_sites_curve():
  """Federated and fine-tuned on n sentences against these alone, per n."""
  parts = {
    n: {LOCAL: runs(answers(new=[low] * 3)), 'fed_medlora': runs(answers(new=[high] * 3))}
    for n, low, high in (('n = 0', 0, 4), ('n = all', 5, 6))}
  found = comparisons.new_site_comparisons(parts, DRAWS)
  assert [str(one).split(' (')[0] for one in found] == [
    'fed_medlora + n − local only: +0.400',
    'fed_medlora + n − local only: +0.100',
    'fed_medlora + n − fed_medlora as it was: +0.200']
  assert '(no interval) (entities, n = all, new, 3 sources; one seed' in str(found[1])
  curve = tables.curve(parts, 'ner', DRAWS)
  assert shown(tables.curve_table('A new site', '', parts, curve, 'ner')) == {
    LOCAL: ['0.000', '0.500'], 'fed_medlora': ['0.400', '0.600']}
  x = {'n = 0': 0.0, 'n = all': 9.0}
  plot = tables.curve_plot('A new site', 'sentences', x, curve, 'ner')
  assert [point[:2] for point in plot.series['fed_medlora']] == [(0.0, 0.4), (9.0, 0.6)]


def test_a_curve_is_over_the_sites_that_all_its_points_have():
  """With 4 sites the method has no score at b: both points are of a, 0.5 and 0.3, though with 2 the
  mean of both sites is 0.7. A part that is tested elsewhere does not matter."""
  few = runs(answers(a=[5, 5], b=[9, 9]))
  many = runs(answers(a=[3, 3], b=[1, 1]))
  many = many._replace(scores=({'a': many.scores[0]['a'], 'b': {}},))
  parts = {'2': {'fed_medlora': few, 'uniform': few}, '4': {'fed_medlora': many, 'uniform': few},
           'other': {'fed_medlora': runs(answers(c=[8, 8]))}}
  found = {label: estimate.value
           for label, estimate in tables.curve(parts, 'ner', DRAWS)['fed_medlora'].items()}
  assert found == pytest.approx({'2': 0.5, '4': 0.3, 'other': 0.8})
  assert tables.curve(parts, 'ner', DRAWS)['uniform']['4'].value == pytest.approx(0.5)


def test_more_sites_against_fewer():
  """Each trained regime with itself, most sites against fewest; what one lacks is out."""
  still = runs(answers(a=[1] * 3))
  still = still._replace(summaries=({**still.summaries[0], 'local_steps': 0},))
  parts = {
    8: {'fed_medlora': runs(answers(a=[5] * 3)), 'zero_shot': still},
    2: {'fed_medlora': runs(answers(a=[8] * 3)), 'centralised': runs(answers(a=[9] * 3)),
        'zero_shot': still},
    4: {'fed_medlora': runs(answers(a=[1] * 3))}}
  found, = comparisons.scaling_comparisons(parts, DRAWS)
  assert str(found).startswith(
    'fed_medlora, 8 sites − 2 sites: -0.300 (no interval) (entities, a, 3 sources; one seed')


def test_the_first_sentence_of_a_report(rows):
  """Means of a and b: api 0.9, fed_medlora (0.7 + 0.6) / 2 = 0.65, single_site 0.55. Over
  fed_medlora 0.3 and 0.1 are gained of a's two notes, of b's 0.3 each: of the means 0.3 and 0.2, as
  above an error of 0.05 and t 12.7, so 0 is in the interval. A row that is above by the same on
  every note has no interval."""
  said = headline(rows, '', DRAWS)
  assert said.startswith(
    'Of 3 regimes, api:some model has the highest mean strict F1 of entities, 0.900, 0.250 [95 %: ')
  assert said.endswith('above the next, fed_medlora, on 2 sites (4 sources, 1 seed); 0 is in the '
                       'interval, so the two are not told apart.')
  level = {'x': runs(answers(a=[5, 5])), 'y': runs(answers(a=[7, 7]))}
  assert headline(level, '3 sites', DRAWS) == (
    'Of 2 regimes, y has the highest mean strict F1 of entities, 0.700, 0.200 (no interval) '
    'above the next, x, on 1 site (2 sources, 1 seed, 3 sites).')
  even = {'x': runs(answers(a=[5, 5])), 'y': runs(answers(a=[5, 5]))}
  assert headline(even, '', DRAWS).startswith(
    'Of 2 regimes, x and y have the highest mean strict F1 of entities, 0.500, on 1 site')
  # 20 notes of which all but one are gained by 0.2: far from 0.
  clear = {'x': runs(answers(a=[5] * 20)), 'y': runs(answers(a=[7] * 19 + [6]))}
  assert 'not told apart' not in headline(clear, '', DRAWS) and '+0.1' in headline(clear, '', DRAWS)
  alone = {'fed_medlora': runs(answers(a=[6, 8], out=[4, 2]))}
  assert headline(alone, '', DRAWS, external=True).startswith(
    'fed_medlora reaches a mean strict F1 of entities of 0.300 [95 %: ')


def test_a_regime_whose_answers_are_unreadable_is_marked(rows):
  """21 of 100 answers of one of two seeds; 20 of 100 are not enough."""
  def seed(unreadable):
    held = runs(answers(a=[5, 6], b=[6, 7])).summaries[0]
    return held | {'answers': {'a': {'asked': 100, 'copied': 100, 'unreadable': unreadable}}}

  two = [runs(*[answers(a=[5, 6], b=[6, 7])] * 2)._replace(summaries=(seed(0), seed(number)))
         for number in (20, 21)]
  given = {'good': two[0], 'bad': two[1]}
  for table in (tables.seeds_table(given, 'ner', DRAWS), tables.spread_table(given, 'ner', DRAWS),
                tables.curve_table('t', '', {'1': given}, tables.curve(
                  {'1': given}, 'ner', DRAWS), 'ner')):
    assert [row[0] for row in table.rows] == ['good', 'bad †'] and '† more than 20%' in table.note
  assert '†' not in tables.spread_table(rows, 'ner', DRAWS).note

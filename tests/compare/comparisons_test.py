"""What a comparison says: pairs, sentences, seeds put together, who gains."""

import numpy as np
import pytest

from fedmedjax.compare import comparisons, tables
from fedmedjax.compare.comparisons import Draws, Runs
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


def runs(*seeds, external=('out',), cross=()) -> Runs:
  """One run a seed, with the summaries that such counts give."""
  summaries = tuple({
    'seed': number, 'sites': [site for site in held if site not in external],
    'external': [site for site in held if site in external], 'global': None, 'preset': 'x',
    'wall_seconds': 10.0 * number, 'local_steps': 4,
    'scores': {site: {'ner': metrics.scores(
      scores['ner'].counts.sum(0), TYPES, metrics.bootstrap_f1(scores['ner'].counts, 0, 50))}
      for site, scores in held.items()}} for number, held in enumerate(seeds, 1))
  return Runs(summaries, seeds, tuple(cross) or ({},) * len(seeds), ({},) * len(seeds))


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
    'single_site': runs(answers(a=[5, 5], b=[6, 6], out=[2, 2]), cross=[cross]),
    'fed_medlora': runs(answers(a=[6, 8], b=[6, 6], out=[4, 4])),
    'api:some model': runs(answers(a=[9, 9], b=[9, 9], out=[9, 9]))}


def test_every_method_meets_every_baseline(rows):
  """fed_medlora: 0.7 and 0.6, mean 0.65; over two notes of a F1 is 0.6, 0.7 or 0.8, so the mean's
  interval is 0.6 to 0.7."""
  found = comparisons.comparisons(rows, 'in_domain', '', DRAWS)
  values = {(one.where, one.theirs): tuple(one.estimate) for one in found}
  inside, outside = 'mean of 2 sites', 'out (external)'
  together = 'single_site (all of them, counts added)'
  assert values == {
    (inside, 'single_site (each its own)'): pytest.approx((0.1, 0.05, 0.15)),
    (inside, 'best single site (b)'): pytest.approx((0.2, 0.15, 0.25)),
    (inside, 'api:some model'): pytest.approx((-0.25, -0.3, -0.2)),
    (outside, together): pytest.approx((0.2, 0.2, 0.2)),
    (outside, 'best single site (a)'): pytest.approx((0.1, 0.1, 0.1)),
    (outside, 'api:some model'): pytest.approx((-0.5, -0.5, -0.5))}
  assert str(found[0]) == (
    'fed_medlora − single_site (each its own): +0.100 [+0.050, +0.150] (entities, mean of 2 sites, '
    '4 notes)')
  assert found[0].record()['estimate']['low'] == pytest.approx(0.05)


def test_an_interval_that_holds_nothing_for_sure_says_so(rows):
  """Equal runs differ by 0 [0, 0]."""
  same = rows | {'uniform': rows['fed_medlora']}
  sentence, = {
    str(one) for one in comparisons.comparisons(same, 'in_domain', '', DRAWS)
    if (one.ours, one.theirs, one.where) == ('uniform', 'fed_medlora', 'mean of 2 sites')}
  assert '+0.000 [+0.000, +0.000]' in sentence and sentence.endswith('; 0 is in the interval)')


def test_the_best_single_site_is_best_by_strict_f1():
  """Strict hits of 10 at (a, b), two seeds: x 5, 5 and 5, 3, mean F1 0.45; y 4, 4 and 4, 4, mean
  0.4, though its lenient 9 of 10 everywhere beat x's 6."""
  def held(strict, lenient):
    counts = [[[tp, 10 - tp, 10 - tp]] * 2 for tp in (strict, lenient)]
    return {'ner': NoteCounts(('n',), np.array([counts]))}

  cross = [
    {'y': {site: held(4, 9) for site in 'ab'}, 'x': {'a': held(5, 6), 'b': held(b, 6)}}
    for b in (5, 3)]
  row = Runs(({}, {}), ({}, {}), tuple(cross), ({}, {}))
  name, found = comparisons.best_single_site(row, ['a', 'b'], 'ner')
  assert name == 'x' and found == [one['x'] for one in cross]


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
  assert [(one.where, one.notes) for one in found] == [('b', 2)]
  assert found[0].estimate.value == pytest.approx(0.2)
  # Regimes may score unlike sites; what all have is shown.
  less = rows['fed_medlora']._replace(scores=(
    {'a': rows['fed_medlora'].scores[0]['a'], 'b': {}},))
  both = {'x': rows['fed_medlora'], 'y': less}
  assert tables.spread_table(both, 'ner', DRAWS).columns[3:] == ('a',)


def test_seeds_are_put_together(rows):
  """F1 of a 0.6 and 0.8: 0.7; each seed has one note, so draws are 0.6, 0.7 and 0.8."""
  both = runs(answers(a=[6]), answers(a=[8]))
  out = comparisons.merged(both, DRAWS)
  entry = out['scores']['a']['ner']['strict']
  assert entry['typed']['f1'] == pytest.approx(0.7)
  assert entry['typed']['ci95'] == pytest.approx([0.6, 0.8])
  assert entry['untyped']['f1'] == pytest.approx(0.7) and entry['untyped']['ci95'] is None
  assert (out['seeds'], out['seed'], out['wall_seconds']) == ([1, 2], 1, 15.0)
  assert repr(out['local_steps']) == '4'
  assert out['sites'] == ['a'] and out['preset'] == 'x'
  one = rows['fed_medlora']
  assert comparisons.merged(one, DRAWS) is one.summaries[0]
  found, = comparisons.comparisons(
    {'zero_shot': runs(answers(a=[1]), answers(a=[1])), 'fed_medlora': both}, 'scaling', '8 sites',
    DRAWS)
  assert str(found).endswith('(entities, 8 sites, a, 1 note, 2 seeds)')
  table = tables.seeds_table({'fed_medlora': both}, 'ner', DRAWS)
  assert table.title == 'Entities: 2 seeds'
  assert shown(table) == {'fed_medlora': ['0.700 [0.60, 0.80]', '0.700 [0.60, 0.80]']}
  assert tables.seeds_table({'fed_medlora': one}, 'ner', DRAWS) is None


def test_tables_of_who_gains_and_of_adapters_across_sites(rows):
  gains = shown(tables.spread_table(rows, 'ner', DRAWS))
  assert gains['fed_medlora'] == [
    '0.600 b', '0.100', '+0.200 [+0.10, +0.30]', '+0.000 [+0.00, +0.00]']
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
    'fed_medlora + n − local only: +0.400 [+0.400, +0.400]',
    'fed_medlora + n − local only: +0.100 [+0.100, +0.100]',
    'fed_medlora + n − fed_medlora as it was: +0.200 [+0.200, +0.200]']
  assert '(entities, n = all, new, 3 notes)' in str(found[1])
  curve = tables.curve(parts, 'ner', DRAWS)
  assert shown(tables.curve_table('A new site', '', list(parts), curve, 'ner')) == {
    LOCAL: ['0.000 [0.00, 0.00]', '0.500 [0.50, 0.50]'],
    'fed_medlora': ['0.400 [0.40, 0.40]', '0.600 [0.60, 0.60]']}
  x = {'n = 0': 0.0, 'n = all': 9.0}
  plot = tables.curve_plot('A new site', 'sentences', x, curve, 'ner')
  assert [point[:2] for point in plot.series['fed_medlora']] == [(0.0, 0.4), (9.0, 0.6)]


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
  assert str(found) == (
    'fed_medlora, 8 sites − 2 sites: -0.300 [-0.300, -0.300] (entities, a, 3 notes)')

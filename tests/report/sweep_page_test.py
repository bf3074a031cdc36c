"""sweep.html: its numbers by hand, what must be said of failed runs, and how it looks."""

import html
import json
import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from chromium import MODES, WIDTHS, check_fits, looked_at, run_browser
from invented_run import invent, write
from invented_sweep import invent_sweep

from fedmedjax.report import sweep_page
from fedmedjax.report.sweep_runs import Block, differences, frontier, over_seeds, ranks, read_sweep
from fedmedjax.report.sweep_words import first_sentence
from fedmedjax.types import InputError

GRID = {'fed.preset': ['a', 'b', 'c'], 'data.partition.strength': [0.1, 10], 'seed': [0, 1]}
# Of b minus a: by seed the means over both strengths are .02 and .04; c is a minus .01, always.
GAINS = {'a': {}, 'b': {(0.1, 0): 0.01, (10, 0): 0.03, (0.1, 1): 0.05, (10, 1): 0.03}, 'c': {}}


def score(overrides):
  preset, *place = overrides.values()
  return (0.5 + 0.1 * overrides['seed'] + GAINS[preset].get(tuple(place), 0.0)
          - 0.01 * (preset == 'c'))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return invent(tmp_path_factory.mktemp('one') / 'run')


@pytest.fixture(scope='module')
def folder(run, tmp_path_factory):
  return invent_sweep(tmp_path_factory.mktemp('sweep'), run, GRID, score)


def text_of(path: Path) -> str:
  """The words of a page."""
  body = re.sub(r'<style>.*?</style>|<svg.*?</svg>', '', path.read_text(), flags=re.DOTALL)
  return ' '.join(re.sub(r'<[^>]+>', ' ', body.replace('<wbr>', '')).split())


def test_differences_ranks_and_the_frontier_by_hand(folder):
  """Of b - a by seed .02 and .04: mean .03, standard deviation .01 sqrt 2, standard error .01; the
  t quantile of one degree of freedom is 12.706. p of t = 3 there is 1 - 2 atan(3) / pi = .2048,
  and by Holm the same, since c - a does not vary and has no p."""
  sweep = read_sweep(folder)
  assert (sweep.axis, sweep.arms, sweep.seeds, len(sweep.settings)) == (
    'fed.preset', ['a', 'b', 'c'], 2, 2)
  b, c = differences(sweep, 'a')
  np.testing.assert_allclose(b.estimate[:3], (0.03, 0.03 - 0.12706, 0.03 + 0.12706), atol=1e-5)
  np.testing.assert_allclose((b.estimate.p, b.holm), 1 - 2 * np.arctan(3) / np.pi, atol=1e-6)
  assert (b.blocks, c.estimate.value, c.estimate.low) == (4, pytest.approx(-0.01), None)
  found, without = ranks(sweep)
  assert {arm: [*of_arm.values()] for arm, of_arm in found.items()} == {
    'a': [2.0] * 4, 'b': [1.0] * 4, 'c': [3.0] * 4} and without == []
  assert frontier({'a': (1, 0.5), 'b': (2, 0.6), 'c': (2, 0.5), 'd': (3, 0.6), 'e': (1, 0.5)}) == [
    'a', 'e', 'b']
  # Unequal numbers of settings: of each seed the mean comes first.
  mean = over_seeds({Block(('x',), ('0',)): 0.0, Block(('y',), ('0',)): 0.0,
                     Block(('x',), ('1',)): 1.0}, (-1, 1))
  assert mean.value == 0.5


def sentence(folder, baseline='') -> str:
  sweep = read_sweep(folder)
  against = baseline or next(iter(sweep.arms), '')
  return first_sentence(sweep, against, differences(sweep, against) if against else [])


def test_the_first_sentence(folder, run, tmp_path):
  found = sentence(folder)
  assert found == (
    'Of 3 methods, over 2 seeds and 2 settings, no gain on a is told apart from chance; the '
    'largest is that of b, +3.0 points of strict F1 of entities (95 %: -9.7 to +15.7), to a '
    'mean of 0.580.')
  page = text_of(sweep_page.write(folder))
  assert found in page and 'Differences to a' not in page and 'Difference to a' in page
  # The command can be pasted, on any machine; columns without a value are left out.
  command = re.search(r'<pre class="command">(.*?)</pre>', (folder / 'sweep.html').read_text())
  typed = html.unescape(re.sub(r'<[^>]+>', '', command[1]))
  assert shlex.split(typed) == [
    'python', '-m', 'fedmedjax.sweep', f'--workdir={folder}', '--grid=seed=0..1;fed.preset=a,b,c']
  assert "--grid='seed=" in typed and 'run status score MB settings run_000' in page
  assert 'none gains on b, whose mean strict F1 of entities is 0.580.' in sentence(folder, 'b')
  with pytest.raises(InputError, match="baseline='d': no finished run .* allowed are a, b, c"):
    sweep_page.write(folder, 'd')

  def told(name, grid, value, failed=None):
    return sentence(invent_sweep(tmp_path / name, run, grid, value, failed))

  # A gain that hardly varies over three seeds.
  assert 'Of 2 methods, over 3 seeds, b gains most on a: +10.1 points of strict' in told(
    'sure', {'fed.preset': ['a', 'b'], 'seed': [0, 1, 2]}, lambda o: (
      0.5 + (0.1 + 0.001 * o['seed']) * (o['fed.preset'] == 'b')))
  assert ('optim.learning_rate=0.0005 gains most on optim.learning_rate=0.0001: +4.0 points of '
          'strict F1 of entities (one seed, so no interval)') in told(
    'one', {'optim.learning_rate': [1e-4, 5e-4]}, lambda o: 100 * o['optim.learning_rate'])
  assert 'has a mean strict F1 of entities of 0.500 [95 %' in told(
    'seeds', {'seed': [0, 1]}, lambda o: 0.45 + 0.1 * o['seed'])
  assert 'No run of 1 has finished' in told('none', {'seed': [0]}, score, {'run_000': 'broke'})


def test_failed_runs_are_named_and_favour_nobody(run, tmp_path):
  """b failed with the good seed: it is compared on the other one, and not ranked there."""
  failed = {'run_005': 'RuntimeError: a & <b>', 'run_007': 'RuntimeError: a & <b>',
            **{f'run_{n:03}': 'refused' for n in (8, 9, 10)}}
  sweep = invent_sweep(tmp_path / 'sweep', run, GRID, score, failed)
  stored = json.loads((sweep / 'sweep.json').read_text())
  stored['runs'][0] |= {'status': 'stopped'}
  for number in (8, 9, 10):
    stored['runs'][number] |= {'status': 'refused', 'error': 'one rank is needed'}
  write(sweep / 'sweep.json', stored)
  path = sweep_page.write(sweep)
  page = text_of(path)
  assert '2 runs failed (run_005, run_007): RuntimeError: a &amp; &lt;b&gt;' in page
  assert '3 runs refused (run_008, run_009, run_010): one rank is needed' in page
  assert '12 runs: 1 stopped, 6 done, 2 failed, 3 refused' in page
  held = read_sweep(sweep)
  b, c = differences(held, 'a')
  # Of seed 0 the setting 10 alone is left of both.
  assert (b.blocks, b.estimate.value, b.estimate.low) == (1, pytest.approx(0.03), None)
  found, without = ranks(held)
  assert list(found) == ['a', 'b'] and without == ['c'] and len(found['a']) == 1
  assert '<script' not in path.read_text()


def test_a_random_search_has_points_and_names_its_best_run(run, tmp_path):
  rates = np.geomspace(1e-5, 1e-2, 60)
  sweep = invent_sweep(tmp_path / 'sweep', run, {'optim.learning_rate': list(rates)},
                       lambda overrides: overrides['optim.learning_rate'] * 50)
  entries = json.loads((sweep / 'sweep.json').read_text())
  # Each with a strength of its own.
  for number, one in enumerate(entries['runs']):
    one['overrides']['data.partition.strength'] = 0.1 + number
  write(sweep / 'sweep.json', {'runs': entries['runs']})
  page = sweep_page.write(sweep)
  assert 'Of 60 runs, run_059 has the highest mean strict F1 of entities, 0.500' in text_of(page)
  assert page.read_text().count('<svg') == 2 and 'All send the same' in text_of(page)


def joined(folder: Path, runs) -> Path:
  """A sweep with these runs, (overrides, own configuration, score)."""
  for number, (_, config, f1) in enumerate(runs):
    invent(folder / 'runs' / str(number), config=config, f1=f1)
  write(folder / 'sweep.json', {'runs': [
    {'name': str(number), 'overrides': overrides, 'status': 'done'}
    for number, (overrides, _, _) in enumerate(runs)]})
  return folder


def test_runs_of_a_second_grid_stand_beside_those_of_the_first(tmp_path):
  """b - a is .1 in the first grid; b alone is run again with what a's grid did not set."""
  def run_of(preset, seed, f1, **more):
    own = {'fed.preset': preset, 'seed': seed}
    return own | more, own | more | {
      'optim.learning_rate': more.get('optim.learning_rate', 0.01),
      'fed.loss_power': more.get('fed.loss_power', {'a': 0.0, 'b': 1.0}[preset])}, f1

  first = [run_of('a', 0, 0.5), run_of('a', 1, 0.5), run_of('b', 0, 0.6), run_of('b', 1, 0.6)]
  # The rate of the second grid is no value of the first, one value alone; the third repeats it.
  rates = [run_of('b', seed, 0.9, **{'optim.learning_rate': 0.02}) for seed in (0, 1)]
  again = [run_of('b', 2, 0.7, **{'optim.learning_rate': 0.01}), run_of('a', 2, 0.6)]
  sweep = read_sweep(joined(tmp_path / 'rates', first + rates + again))
  assert sweep.axes == {'fed.preset': ['a', 'b'], 'optim.learning_rate': ['0.01', '0.02']}
  assert {arm: len(runs) for arm, runs in sweep.table.items()} == {'a': 3, 'b': 5}
  gain, = differences(sweep, 'a')
  assert (gain.blocks, gain.estimate.value) == (3, pytest.approx(0.1))
  # What presets themselves set unlike does not part them; nor does an axis of several keys.
  powers = [run_of('b', 0, 0.9, **{'fed.loss_power': 2.0}), run_of('b', 0, 0.9, setting='iid')]
  sweep = read_sweep(joined(tmp_path / 'powers', first + powers))
  assert sweep.axes == {'fed.preset': ['a', 'b'], 'fed.loss_power': ['(unset)', '2'],
                        'setting': ['(unset)', 'iid']}
  gain, = differences(sweep, 'a')
  assert (gain.blocks, gain.estimate.value, len(sweep.blocks)) == (2, pytest.approx(0.1), 4)
  # Values that are alike in six digits differ; runs that are alike in all are no one run.
  near = [run_of('b', 0, 0.9, **{'optim.learning_rate': rate}) for rate in (0.1, 0.1000000001)]
  assert read_sweep(joined(tmp_path / 'near', near)).arms == ['0.1', '0.1000000001']
  with pytest.raises(InputError, match='the runs 0 and 4 differ in nothing'):
    read_sweep(joined(tmp_path / 'twice', first + first[:1]))


def test_what_is_no_sweep_is_refused(tmp_path):
  with pytest.raises(InputError, match=r'sweep\.json: cannot be read'):
    sweep_page.write(tmp_path)
  write(tmp_path / 'sweep.json', {'runs': [{'status': 'done'}]})
  with pytest.raises(InputError, match=r'sweep\.json: is no list of runs') as error:
    sweep_page.write(tmp_path)
  assert '\n' not in str(error.value)


@pytest.fixture(scope='module')
def large(run, tmp_path_factory) -> Path:
  """As many methods and failures as a page has to cope with, of long names."""
  presets = [f'a_method_of_long_name_{n:02}' * (1 + n % 2) for n in range(24)]
  grid = {'fed.preset': presets, 'data.partition.strength': [0.1, 1, 10],
          'data.partition.kind': ['types', 'a_partition_of_my_own.py:dealt'], 'seed': [0, 1]}
  rng = np.random.default_rng(0)
  return sweep_page.write(invent_sweep(
    tmp_path_factory.mktemp('large'), run, grid, lambda o: 0.6 + 0.02 * rng.normal(),
    {f'run_{n:03}': f'RuntimeError: rounds {n} to 5: no site has a finite loss and update; lower '
     'config.optim.learning_rate, in another workdir' for n in range(12, 40)}))


@pytest.mark.parametrize('mode', MODES)
def test_the_page_fits_and_can_be_read(browser, large, tmp_path, mode):
  found, console = looked_at(browser, tmp_path, mode, large)
  assert console == []
  check_fits(found)
  for width in WIDTHS:
    one = found[str(width)]
    assert one['svgs'] >= 6 and one['size'] >= 8, (width, one['size'])
  # One meaning a colour: that of a heat map is the only one, and no method has one.
  assert not re.findall(r'var\(--(?:s\d|accent)\)', ''.join(
    re.findall(r'<svg.*?</svg>', large.read_text(), re.DOTALL)))
  folder = os.environ.get('FEDMEDJAX_SCREENSHOTS')
  for width in WIDTHS if folder else ():
    picture = Path(folder).absolute() / f'sweep_{width}_{mode}.png'
    run_browser(browser, tmp_path, mode, large, f'--screenshot={picture}',
                f'--window-size={width},4000')

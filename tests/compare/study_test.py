"""The study's units, rows and tables, on rows worked by hand; nothing is trained."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from docs_test import ROOT

from fedmedjax.compare import study, study_claims, study_figures, study_tables, study_units
from fedmedjax.compare.rows import DEPTH, Row
from fedmedjax.compare.study_units import EXTERNAL, POOL
from fedmedjax.eval.intervals import Estimate
from fedmedjax.types import InputError

RUNS = Path('runs')


@pytest.fixture(scope='module')
def r1():
  return study_units.units('r1', RUNS)


class Silent:
  """A reporter that keeps what it is told."""

  def __init__(self):
    self.said = []

  def say(self, line):
    self.said.append(line)


def at(folder: Path) -> study.Paths:
  return study.Paths(folder, folder / 'results', folder / 'runs')


def counts(sources, **kinds) -> dict:
  """A cohort's entry of a row: (tp, fp, fn) of each source, strict and lenient alike."""
  return {'sources': list(sources)} | {
    kind: [[*one, *one] for one in values] for kind, values in kinds.items()}


def row(regime: str, seed: int, tp: int, *, best: int | None = None, commit='aaaaaaa') -> dict:
  """A row of R1 in which every cohort has two alike sources of tp right ones, and of 10 - tp wrong
  and missed ones each: F1 is tp / 10, and no source differs from the other."""
  def scores(tp):
    one = (tp, 10 - tp, 10 - tp)
    return {name: counts('ab', decoding=[one, one], teacher_forced=[(10, 0, 0)] * 2)
            for name in (*POOL, EXTERNAL)}

  more = {} if best is None else {'best': {'site': 'part_1', 'scores': scores(best)}}
  return {
    'unit': {'regime': regime, 'seed': seed}, 'seed': seed, 'data_seed': seed, 'config': {},
    'digest': '', 'commit': commit, 'processor': 'abacus, 2 cores', 'seconds': 1800.0,
    'scores': scores(tp), 'local_steps': 240, 'bytes_up': 10**6, 'bytes_down': 10**6} | more


def test_the_runs_of_the_study(r1):
  found = {(unit.name['regime'], unit.name['seed']): unit.run for unit in r1}
  assert len(found) == 4 * 5 + 1
  fed = found['fed_medlora', 43].config
  assert fed.seed == 43 and fed.data.sites == POOL and fed.data.external == (EXTERNAL,)
  assert (fed.data.partition.kind, fed.data.partition.strength) == ('types', 0.3)
  assert (fed.fed.rounds, fed.fed.local_steps, fed.fed.batch_size) == (6, 10, 4)
  # Equal steps: pooled, the 4 sites' 40 a round; equal depth: the 10 of one, of 4 x 4 examples.
  pooled = [found[regime, 43].config.fed for regime in ('centralised', DEPTH)]
  assert all(chosen.pooled for chosen in pooled)
  assert [(chosen.round_steps, chosen.batch_size) for chosen in pooled] == [(0, 4), (10, 16)]
  assert all(unit.hours > 0 for unit in r1)


def test_the_largest_site_of_r2_is_wrong():
  found = study_units.units('r2', RUNS)
  assert len(found) == 3 * (1 + 2 * 3)
  for unit in found:
    config = unit.run.config
    assert config.data.partition.sizes == (.4, .2, .2, .2)
    assert config.data.partition.corrupted_sites == (0,)
    assert bool(config.data.server_validation) == (unit.name['v'] == 'clean')
  assert len({unit.run.folder for unit in found}) == len(found)


def test_both_arms_of_r4_take_equal_steps():
  """5 epochs of 25 sentences by 4 are 32 steps (31.25); of 100 the federation's 60 are allowed."""
  found = study_units.units('r4', RUNS)
  assert len(found) == 3 * 3 * 2
  for unit in found:
    config = unit.run.config
    assert config.data.sites == (EXTERNAL,) and config.eval.max_examples == 200
    assert bool(unit.start) == bool(config.lora.start) == (unit.name['arm'] == 'federated')
    if unit.start:
      assert config.lora.start == str(unit.start.run.folder / 'adapter')
      assert unit.start.name['seed'] == unit.name['seed'] == config.seed
    if unit.name['n']:
      assert config.fed.local_steps == {25: 32, 100: 60}[unit.name['n']]
      assert config.data.max_train_sentences == unit.name['n']


def test_bytes_of_larger_models_by_hand():
  """Llama-3.1-8B, rank 16: 32 layers of 16 (2 (4096 + 4096) + 2 (4096 + 1024) + 3 (4096 + 14336)) =
  41,943,040 values of 4 bytes against 8,030,261,248 of 2, headers of 12 and 28 bytes beside."""
  found = study_units.ledger_figures('Llama-3.1-8B')
  assert found['adapter_parameters'] == 32 * 16 * (2 * 8192 + 2 * 5120 + 3 * 18432) == 41_943_040
  assert found['base_parameters'] == 8_030_261_248
  assert (found['bytes_down'], found['bytes_up']) == (4 * 41_943_040 + 12, 4 * 41_943_040 + 28)
  assert f'{study_figures.saved(found):.2%}' == '98.96%'
  # Published: 1.24 and 4.02 thousand millions.
  assert study_units.ledger_figures('Llama-3.2-1B')['base_parameters'] == 1_235_814_400
  assert study_units.ledger_figures('Qwen3-4B')['base_parameters'] == 4_022_468_096


def test_units_are_skipped_appended_and_listed(tmp_path):
  made = []

  def unit(number, **name):
    return study_units.Unit(
      'r5', {'number': number} | name, 0.5,
      figures=lambda reporter: made.append(number) or {'f': number})

  paths, reporter = at(tmp_path), Silent()
  assert study.carry_out([unit(1)], paths, reporter) == 1
  assert study.carry_out([unit(1), unit(2)], paths, reporter) == 1
  assert made == [1, 2] and len(reporter.said) == 4
  rows = study.read_rows(paths.rows('r5'))
  assert [(one['unit'], one['f'], one['commit']) for one in rows] == [
    ({'number': 1}, 1, 'unknown'), ({'number': 2}, 2, 'unknown')]
  assert 'cores' in rows[0]['processor'] and len(rows[0]['digest']) == 16
  # After no time at all nothing is started; a whole file stays as it was.
  assert study.carry_out([unit(3)], paths, reporter, minutes=1e-9) == 0
  assert '1 units from r5 number=3 on' in reporter.said[-1]
  listed = study.listing([unit(1), unit(2), unit(3)], paths).splitlines()
  assert [line.split()[0] for line in listed] == ['done', 'done', 'to', '1']
  assert listed[2] == 'to do  r5 number=3: about 0.50 hours' and '0.5 hours' in listed[-1]


def test_a_row_belongs_to_a_unit_of_the_same_settings(r1):
  unit = r1[0]
  known = study.identity(unit)
  assert known['seed'] == known['data_seed'] == 42
  assert known['config']['fed.rounds'] == 6 and known['config']['data.sites'] == list(POOL)
  # Where things lie, and what changes no figure, is left out.
  assert not {'seed', 'lora.start', 'log.steps', 'fed.chunk'} & known['config'].keys()
  old = json.loads(json.dumps(known)) | {'commit': 'aaaaaaa'}
  assert study.done(unit, [old]) is old
  for key, value in (('fed.rounds', 5), ('eval.max_examples', 10)):
    assert study.done(unit, [old | {'config': old['config'] | {key: value}}]) is None
  assert study.done(unit, [old | {'data_seed': 7}]) is None


def test_a_broken_row_is_named(tmp_path):
  (tmp_path / 'r1.jsonl').write_text('{"unit": {}, "commit": "a"}\n{"unit": {"re\n')
  with pytest.raises(InputError, match='r1.jsonl, line 2: no row'):
    study.read_rows(tmp_path / 'r1.jsonl')


def test_a_unit_whose_adapter_is_gone_makes_it_first(tmp_path):
  """The run that it starts from is carried out and gets its row, before its own."""
  order = []

  def unit(name, start=None):
    folder = tmp_path / 'runs' / name
    config = study_units.base_config()
    config.model.matmul = 'auto' if start else 'float32'

    def run(config, workdir, reporter, data):
      order.append((name, config.model.matmul))
      (workdir / 'adapter').mkdir(parents=True)
      (workdir / 'predictions').mkdir()
      (workdir / 'predictions' / 'counts.json').write_text(json.dumps({'scores': {'ward': {
        'sources': ['a', 'b'], 'ner': [[[[1, 2, 3], [9, 9, 9]], [[4, 5, 6], [9, 9, 9]]],
                                       [[[0, 0, 1], [9, 9, 9]], [[0, 0, 1], [9, 9, 9]]]]}}}))
      return dict.fromkeys((
        'local_steps', 'bytes_up', 'bytes_down', 'bytes_full_model', 'copy_rate',
        'parse_failure_rate', 'wall_seconds'), 1.0)

    made = Row(folder, config, {'name': name}, (), run)
    return study_units.Unit('r4', {'name': name}, 0.1, made, start)

  patched = pytest.MonkeyPatch()
  with patched.context() as patch:
    patch.setattr(study, 'load_data', lambda *rest: SimpleNamespace(base=None))
    patch.setattr(study.matmul, 'decided', lambda *rest: 'bfloat16')
    study.carry_out([unit('second', unit('first'))], at(tmp_path), Silent())
  rows = study.read_rows(tmp_path / 'results' / 'r4.jsonl')
  assert order == [('first', 'float32'), ('second', 'bfloat16')]
  assert [one['unit']['name'] for one in rows] == ['first', 'second']
  # What 'auto' is differs by machine: the row is known by 'auto', and says what was taken.
  assert ['matmul' in one for one in rows] == [False, True] and rows[1]['matmul'] == 'bfloat16'
  assert rows[1]['config']['model.matmul'] == 'auto' and 'model.matmul' not in rows[0]['config']
  # Two types and all of them merged were counted: only the former are added up.
  assert rows[0]['scores'] == {'ward': {
    'sources': ['a', 'b'], 'decoding': [[1, 2, 3, 4, 5, 6], [0, 0, 1, 0, 0, 1]]}}


def test_figures_and_differences_by_hand():
  """F1 of 0.5, 0.6, 0.7 with three seeds: mean 0.6, sd 0.1, t interval 0.6 +- 4.3027 x 0.1 / sqrt 3
  = 0.2484; sources do not differ. Beside 0.4, 0.4, 0.4 the differences are 0.1, 0.2, 0.3."""
  ours = [row('fed_medlora', seed, tp) for seed, tp in ((1, 5), (2, 6), (3, 7))]
  theirs = [row('centralised', seed, 4, best=3) for seed in (3, 2, 1, 9)]
  a, b = (study_figures.chosen([*ours, *theirs], regime=name)
          for name in ('fed_medlora', 'centralised'))
  found = study_figures.mean(a, POOL)
  assert (found.value, found.low, found.high) == pytest.approx((0.6, 0.3516, 0.8484), abs=1e-4)
  assert study_figures.figure(found) == '0.600 [0.35, 0.85]'
  found = study_figures.difference(a, b, POOL)
  assert (found.value, found.low, found.high) == pytest.approx((0.2, -0.0484, 0.4484), abs=1e-4)
  assert study_figures.difference(a, b, POOL, best=True).value == pytest.approx(0.3)
  assert study_figures.difference(a, b, POOL, 'teacher_forced').value == 0
  assert study_figures.difference(a, {}, POOL) is None
  # The base alone has no seed: its one run stands for all.
  zero = study_figures.chosen([row('zero_shot', 1, 0)], regime='zero_shot')
  assert study_figures.difference(a, zero, POOL).value == pytest.approx(0.6)


def test_tables_of_rows(tmp_path):
  rows = dict.fromkeys(study_units.STUDIES, []) | {'r1': [
    row('fed_medlora', 1, 6), row('fed_medlora', 2, 8, commit='bbbbbbb'),
    row('single_site', 1, 5, best=7), row('single_site', 2, 6, best=7)]}
  table = study_tables.r1(rows)
  assert table.startswith(
    '`bash scripts/reproduce.sh r1`: 4 of 21 units, 2.0 hours; abacus, 2 cores')
  cells = {line.split(' | ')[0][2:]: line[2:-2].split(' | ') for line in table.splitlines()
           if line.startswith('| ')}
  assert cells['regime'][:5] == ['regime', 'seeds', *POOL, 'mean']
  assert cells['fed_medlora'][1] == '2' and cells['fed_medlora'][4].startswith('0.700 [')
  assert cells['fed_medlora'][-3:] == ['240', '2', 'aaaaaaa, bbbbbbb†']
  assert cells['best single site, chosen on V'][4] == '0.700'
  # 0.1 and 0.2 apart: 0.15 +- 12.706 x 0.05.
  assert cells['fed_medlora − single_site, all adapters, counts added'][1] == (
    '+0.150 [-0.485, +0.785]')
  evidence = {line[0]: line[1] for line in study_claims.lines(rows)}
  assert evidence['about 25 points over a single site'].endswith('; 2 seeds')
  alone = rows | {'r1': [row('fed_medlora', 1, 6), row('single_site', 1, 5, best=7)]}
  assert next(line[1] for line in study_claims.lines(alone) if line[0].startswith(
    'about 25 points')).endswith('; 1 seed, interval over sources alone')
  assert 'zero_shot' not in cells and study_tables.r2(rows).startswith('not run yet: ')
  assert study_tables.r3(rows).count('0.700 [') == 2  # strict and lenient alike
  outside = rows | {'ncbi': [row('fed_medlora', 42, 8) | {'matmul': 'bfloat16'}]}
  assert '| SmolLM2-135M, LoRA, products in bfloat16 | ours, fed_medlora | 0.800' in (
    study_tables.ncbi(outside))


def test_an_untrained_base_that_ignores_the_format_is_compared_by_teacher_forcing():
  """F1 of 0 is left out where nothing was trained and answers were not readable, nowhere else."""
  def zero(tp=0, **changes):
    return row('zero_shot', 1, tp) | {'local_steps': 0, 'parse_failure_rate': 0.9} | changes

  ours = [row('fed_medlora', 1, 6), row('fed_medlora', 2, 8)]
  rows = dict.fromkeys(study_units.STUDIES, []) | {'r1': [*ours, zero()]}
  table = study_tables.r1(rows)
  assert '| zero_shot | 1 | - | - | - | - | 1.000' in table
  assert '| fed_medlora − zero_shot | - | - | +0.000' in table
  assert 'did not follow the format in 90% of its answers, and' in table
  claims = {line[0]: line[1:3] for line in study_claims.lines(rows)}
  evidence, said = claims['up to 65 points of F1 over zero-shot']
  assert evidence.startswith('fed_medlora − zero_shot: teacher-forced +0.000')
  assert 'do not follow the format; 2 seeds' in evidence and said.startswith('no interval yet')
  lenient = {name: {'sources': ['a'], 'decoding': [[0, 9, 9, 1, 8, 8]]} for name in POOL}
  for counted in (zero(local_steps=240), zero(tp=1), zero(parse_failure_rate=0.1),
                  zero(scores=lenient)):
    table = study_tables.r1(rows | {'r1': [*ours, counted]})
    assert '| zero_shot | 1 | 0.' in table and 'the format' not in table


def test_tables_and_claims_of_the_word_tagger():
  """fed_medlora 2 points below centralised with ten sites, seed by seed 1, 2 and 3: -0.02 +- 4.3027
  x 0.01 / sqrt 3 = 0.0248, so not told apart from 0; were all seeds alike there is no interval."""
  def block(apart):
    return [{'unit': {'block': 'sizes'}, 'commit': 'aaaaaaa', 'processor': 'abacus', 'seconds': 1.0,
             'runs': [{'preset': preset, 'setting': 'sites_10', 'seed': seed, 'f1': 0.5 - less}
                      for seed, less in enumerate(apart)
                      for preset, less in (('centralised', 0.0), ('fed_medlora', less))]}]

  rows = dict.fromkeys(study_units.STUDIES, []) | {'r6': block((0.01, 0.02, 0.03))}
  table = study_tables.r6(rows)
  assert table.startswith('`bash scripts/reproduce.sh r6`: 1 of 3 units')
  assert '| 0.480 ± 0.010 |' in table
  claims = {line[0]: line[1:3] for line in study_claims.lines(rows)}
  assert claims['10 sites about 2 points under centralised, equal steps'] == [
    'word tagger: fed_medlora − centralised: -0.020 [-0.045, +0.005], 3 seeds',
    'not told apart from 0']
  assert claims['10 sites about 2 points under centralised, equal depth'][1] == 'not run yet'


@pytest.mark.parametrize('estimate, sizes, sign, said', [
  ((0.25, 0.2, 0.3), (0.2, 0.3), 1, 'as in the paper'),
  ((0.08, 0.02, 0.14), (0.2, 0.3), 1, 'the same sign, less than in the paper'),
  ((0.18, 0.1, 0.26), (0.2, 0.3), 1,
   'the same sign, less than in the paper, whose range of 0.2 to 0.3 overlaps the interval'),
  ((0.4, 0.35, 0.45), (0.2, 0.3), 1, 'the same sign, more than in the paper'),
  ((0.25, -0.1, 0.6), (0.2, 0.3), 1, 'not told apart from 0'),
  ((-0.2, -0.3, -0.1), (0.2, 0.3), 1, 'the opposite sign'),
  ((-0.02, -0.03, -0.01), (-0.03, -0.01), -1, 'as in the paper'),
  ((-0.08, -0.1, -0.06), (-0.03, -0.01), -1, 'the same sign, more than in the paper'),
  ((0.08, 0.06, 0.1), (-0.03, -0.01), -1, 'the opposite sign'),
  ((0.1, 0.05, 0.15), None, 1, 'the same sign; the paper states no size'),
  ((0.5, 0.45, 0.55), (0.7, 0.76), 0, 'less than in the paper'),
  ((0.5, None, None), (0.7, 0.76), 0, 'no interval yet: more seeds are needed')])
def test_verdicts_need_sign_and_size(estimate, sizes, sign, said):
  assert study_claims.verdict(Estimate(*estimate), sizes, sign) == said


def test_every_claim_has_a_line_before_anything_has_run():
  lines = list(study_claims.lines(dict.fromkeys(study_units.STUDIES, [])))
  assert len(lines) == len(study_claims.CLAIMS) + len(study_claims.OPEN) >= 10
  assert {line[2] for line in lines} == {'not run yet'}
  assert all(len(line) == len(study_claims.HEAD) for line in lines)


def test_tables_of_privacy_by_hand():
  """F1 of 0.2, 0.3 and 0.4: 0.3 +- 4.303 * 0.1 / sqrt(3)."""
  told = {'commit': 'abc', 'seconds': 36.0, 'processor': 'a card'}
  runs = [{'seed': seed, 'f1': 0.2 + 0.1 * seed, 'auc_loss': 0.5, 'auc_calibrated': 0.5,
           'auc_untrained': 0.5, 'caught': 0.01, 'noise': 0.7} for seed in range(3)]
  rows = dict.fromkeys(study_units.STUDIES, []) | {'privacy': [
    told | {'unit': {'level': 'note', 'epsilon': '3.0'}, 'runs': runs},
    told | {'unit': {'proof': 'audited runs'}, 'audited': [{
      'kind': 'sound', 'sound': True, 'runs': 5, 'claim': 0.5, 'bound': 0.25, 'above': 0,
      'noise': 1.0}]}]}
  said = study_tables.privacy(rows)
  assert '2 of 11 units' in said
  assert '| word tagger, 3 seeds | note | 3 | 0.70 | 0.300 [0.052, 0.548] | 0.500 |' in said
  assert '| 5 | sound | 0.500 | 0.250 | 0 | 1.000 | abc |' in study_tables.privacy_proof(rows)


def test_the_page_is_what_its_rows_say():
  page = (ROOT / 'docs' / 'results.md').read_text()
  assert study_tables.filled(page, ROOT / 'docs' / 'results') == page
  # A figure that no row says would not stay.
  assert study_tables.filled(page.replace('98.9', '99.9'), ROOT / 'docs' / 'results') == page
  with pytest.raises(InputError, match='places of tables'):
    study_tables.filled(page.replace('<!-- table: r1 -->', ''), ROOT / 'docs' / 'results')

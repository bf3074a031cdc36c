"""Scenarios of a study: what runs, in which folders, and what is refused before anything does."""

import json

import pytest

from fedmedjax.compare import __main__ as compare
from fedmedjax.compare import regimes
from fedmedjax.compare.new_site import check_new_site
from fedmedjax.compare.scenarios import LOCAL, parts
from fedmedjax.data.synthetic.cohorts import generate_cohort
from fedmedjax.experiment.command_line import parse
from fedmedjax.experiment.notes import data_seed
from fedmedjax.types import InputError

SITES = ('synthetic_icu', 'synthetic_dictation')
FLAGS = ['fedmedjax', '--config=configs/quickstart.py', '--workdir=runs/study',
         f'--config.data.sites={SITES!r}', '--config.fed.rounds=2', '--config.fed.local_steps=6',
         '--config.fed.batch_size=4', '--new_site=synthetic_newsite']


def planned(*more, settings=('in_domain', 'leave_one_out', 'scaling', 'new_site'), seeds=(42,)):
  config, values, overrides = parse([*FLAGS, *more], compare.define, check=False)
  study = compare.study_of(config, compare.Path(values.workdir), values, overrides)
  return parts(study, settings, seeds)


def rows(found) -> dict:
  """{folder: config} of all runs."""
  return {str(row.folder): row.config for part in found for row in part.rows.values()}


def test_the_runs_of_every_setting():
  found = rows(planned('--regimes=single_site,fed_medlora', '--sizes=2,5', '--sentences=0,10,all'))
  few = 'runs/study/new_site'
  assert list(found) == [
    'runs/study/single_site', 'runs/study/fed_medlora',
    *(f'runs/study/leave_one_out/{site}/{regime}' for site in SITES
      for regime in ('single_site', 'fed_medlora')),
    *(f'runs/study/scaling/{size}_sites/{regime}' for size in (2, 5)
      for regime in ('single_site', 'fed_medlora')),
    *(f'{few}/{n}_sentences/{arm}' for n in (0, 10, 'all')
      for arm in ('local_only', 'fed_medlora'))]
  out = found['runs/study/leave_one_out/synthetic_icu/fed_medlora']
  assert (out.data.sites, out.data.external) == (('synthetic_dictation',), ('synthetic_icu',))
  # 2 x 6 steps a round by all sites together, of 2 as of 5.
  for size in (2, 5):
    dealt = found[f'runs/study/scaling/{size}_sites/fed_medlora']
    assert (dealt.data.partition.kind, dealt.data.partition.sites) == ('iid', size)
    assert dealt.fed.round_steps == 12
  # 5 epochs of 10 sentences by 4 are 12.5 steps, of which the federation's 2 x 6 are allowed.
  for n, steps, limit in ((10, 12, 10), ('all', 12, 0)):
    arms = [found[f'{few}/{n}_sentences/{arm}'] for arm in ('local_only', 'fed_medlora')]
    assert [arm.lora.start for arm in arms] == ['', 'runs/study/fed_medlora/adapter']
    for arm in arms:
      assert (arm.data.sites, arm.data.external) == (('synthetic_newsite',), ())
      assert (arm.fed.preset, arm.fed.rounds, arm.fed.local_steps) == ('single_site', 1, steps)
      assert arm.data.max_train_sentences == limit
    assert (arm.simulation.failure, arm.simulation.deadline) == (0.0, 0.0)
  none = found[f'{few}/0_sentences/fed_medlora']
  assert (none.fed.preset, none.lora.start) == ('zero_shot', 'runs/study/fed_medlora/adapter')


def test_equal_steps_where_not_all_sites_take_part():
  """2 sites of 6 steps a round are 12; of 5 sites 2 a round take as many together."""
  found = rows(planned('--regimes=fed_medlora', '--sizes=5', '--config.fed.cohort_size=2',
                       settings=['scaling']))
  assert [config.fed.round_steps for config in found.values()] == [12]


@pytest.mark.parametrize('flags, steps', [
  (['--config.fed.round_steps=10'], 10),
  (['--config.fed.round_steps=10', '--config.fed.local_steps=0'], 10),
  (['--config.fed.round_steps=3', '--config.fed.cohort_size=1'], 6)])
def test_a_new_site_takes_no_more_than_a_sites_part_of_a_round(flags, steps):
  """2 rounds of 10 steps of 2 sites are 5 a site and round; of 3 of a single one 3."""
  found = rows(planned('--regimes=fed_medlora', '--sentences=all', *flags, settings=['new_site']))
  arm = found['runs/study/new_site/all_sentences/fed_medlora']
  assert (arm.fed.local_steps, arm.fed.round_steps) == (steps, 0)


@pytest.mark.parametrize('asked, settings, cut', [
  (2, 'leave_one_out', 1), (1, 'leave_one_out', None), (2, 'scaling', None)])
def test_a_cohort_is_no_larger_than_its_part(asked, settings, cut):
  """Of 2 sites one is left when one is left out; sizes 2 and 5 hold the 2 that are asked for."""
  found = planned('--regimes=fed_medlora', f'--config.fed.cohort_size={asked}', '--sizes=2,5',
                  settings=[settings])
  for part in found:
    size, = {row.config.fed.cohort_size for row in part.rows.values()}
    assert size == (cut or asked)
    assert [f'cohort_size={asked} is cut to the {cut} sites' in one for one in part.warnings] == (
      [True] if cut else [])


def test_other_seeds_have_folders_of_their_own():
  """So that seeds can be added; a new site starts from its own seed's adapter."""
  found = rows(planned('--regimes=fed_medlora', '--sentences=10', '--config.seed=42',
                       settings=['new_site'], seeds=(42, 7)))
  assert list(found) == [
    'runs/study/fed_medlora', *(f'runs/study/new_site/10_sentences/{a}' for a in (
      'local_only', 'fed_medlora')),
    'runs/study/seed_7/fed_medlora', *(f'runs/study/seed_7/new_site/10_sentences/{a}' for a in (
      'local_only', 'fed_medlora'))]
  assert [config.seed for config in found.values()] == [42] * 3 + [7] * 3
  last = found['runs/study/seed_7/new_site/10_sentences/fed_medlora']
  assert last.lora.start == 'runs/study/seed_7/fed_medlora/adapter'


def test_all_seeds_may_meet_the_same_data():
  """config.data.seed follows each seed unless it is set; then weights and order alone vary."""
  for flags, wanted in (([], [1, 2]), (['--config.data.seed=9'], [9, 9])):
    found = rows(planned('--regimes=fed_medlora', *flags, settings=['in_domain'], seeds=(1, 2)))
    assert [config.seed for config in found.values()] == [1, 2]
    assert [data_seed(config) for config in found.values()] == wanted


def test_a_new_sites_own_notes_are_neither_dealt_out_nor_damaged():
  found = rows(planned(
    '--regimes=fed_medlora', '--sentences=10', '--config.data.partition.kind=iid',
    '--config.data.partition.sites=2', '--config.data.partition.sizes=(.6, .4)',
    '--config.data.partition.corrupted_sites=(0,)', '--config.data.partition.missing=0.5',
    '--config.data.partition.missing_sites=(1,)', settings=['new_site']))
  federation, *new = (config.data.partition for config in found.values())
  assert federation.kind == 'iid' and federation.corrupted_sites == (0,)
  assert [(own.kind, own.sizes, own.corrupted_sites, own.missing) for own in new] == [
    ('', (), (), 0.0)] * 2


def test_a_setting_goes_before_the_command_line():
  """What makes a part itself is not undone by a flag that names the same key."""
  out = rows(planned('--regimes=fed_medlora', "--config.data.external=('synthetic_clinic',)",
                     settings=['leave_one_out']))
  assert [config.data.external for config in out.values()] == [(site,) for site in SITES]


@pytest.mark.parametrize('flags, message', [
  (['--settings=moon'], "--settings: 'moon' is not one of in_domain"),
  (['--settings='], '--settings is empty'),
  (['--seeds=1,1'], '--seeds=1,1: different integers >= 0'),
  (['--seeds=-1'], "--seeds=-1: '-1': different integers >= 0"),
  (['--settings=scaling', '--sizes=2,0'], "--sizes=2,0: '0': different integers >= 1"),
  (['--settings=scaling', '--sizes=99'], '--sizes=99: numbers of sites from 1 to the 12'),
  (['--settings=scaling', '--config.fed.local_steps=0'], 'config.fed.local_steps=0'),
  (['--settings=new_site', '--new_site='], "--new_site='': the name of a site"),
  (['--settings=new_site', '--new_site=synthetic_icu'], "--new_site='synthetic_icu'"),
  (['--settings=new_site', '--sentences=few'], "--sentences=few: 'few': different integers >= 0 "
   'or all'),
  (['--settings=new_site', '--regimes=single_site,fedsa_lora,flora'], 'none leaves one adapter'),
  (['--settings=new_site', '--new_site=nowhere'], "unknown site 'nowhere'"),
  (['--settings=new_site', '--sentences=10,5000'], "--sentences=5000: the training notes of "
   "'synthetic_newsite' have "),
  (['--settings=new_site', '--sentences=1', "--config.data.tasks=('re',)", '--config.seed=8'],
   "hold no example of task 're'"),
  (['--settings=leave_one_out', "--config.data.sites=('synthetic_icu',)"], 'two sites or more'),
  (['--settings=leave_one_out', '--config.fed.ranks=(4, 8)'], 'config.fed.ranks'),
  (['--settings=in_domain', '--epochs=0'], 'epochs'),
  (['--settings=scaling', '--config.data.partition.kind=iid', '--config.data.partition.sites=2',
    '--config.data.partition.sizes=(.6, .4)'], 'sizes=(0.6, 0.4): has an entry for each site'),
])
def test_what_is_refused(flags, message, tmp_path, capsys):
  # A tuple that is named twice would be joined.
  named = {flag.split('=')[0] for flag in flags}
  argv = [*(flag for flag in FLAGS if flag.split('=')[0] not in named), *flags]
  assert compare.main([*argv, f'--workdir={tmp_path / "study"}']) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and message in error
  assert not (tmp_path / 'study').exists()


def test_the_federation_may_not_train_on_what_a_new_site_is_tested_on():
  """Checked for every part of it, also of no sentence; its own training notes may be shared."""
  icu, new = (generate_cohort(f'synthetic_{name}') for name in ('icu', 'newsite'))
  none, = (part for part in planned('--sentences=0', settings=('new_site',))
           if part.scenario == 'new_site')
  check_new_site(none, [new], [icu, new._replace(name='twin', test=())])
  leaky = icu._replace(train=(*icu.train, *new.test[:2]))
  with pytest.raises(InputError, match='newsite: 2 training notes of synthetic_icu have the text'):
    check_new_site(none, [new], [leaky])


def test_what_a_new_site_shows_is_of_its_few_sentences():
  """Of none nothing is shown, nor is it checked; of few some must fit, and others be left."""
  new = generate_cohort('synthetic_newsite')
  none, few, many = (part for part in planned(
    '--sentences=0,3,50', '--config.data.shots=3', settings=('new_site',))
    if part.scenario == 'new_site')
  assert [next(iter(part.rows.values())).config.data.shots for part in (none, few, many)] == [
    0, 3, 3]
  for part in (none, many):
    check_new_site(part, [new], [])
  with pytest.raises(InputError, match='config.data.shots=3: of the --sentences=3 drawn of .syn'):
    check_new_site(few, [new], [])


@pytest.mark.slow
def test_all_settings_to_their_end(tiny_folder, tmp_path, capsys):
  """On a tiny random model: files, tables, a sentence for every pair; the second call runs none."""
  workdir = tmp_path / 'study'
  argv = [
    *FLAGS, f'--workdir={workdir}', f'--config.model.path={tiny_folder}',
    '--settings=in_domain,scaling,new_site', '--regimes=single_site,fed_medlora',
    '--sizes=2', '--sentences=0,4', '--config.fed.rounds=1', '--config.fed.local_steps=1',
    '--config.eval.max_examples=3', '--config.eval.bootstrap_samples=20', '--config.lora.rank=4',
    '--config.eval.max_new_ratio=0.1', '--config.data.external=()', '--config.eval.cross_site=True',
    '--config.lora.targets=("q_proj","v_proj")', '--config.data.validation_examples=3',
    '--config.log.steps=False']
  assert compare.main(argv) == 0
  out = ' '.join(capsys.readouterr().out.split())
  folders = workdir, workdir / 'scaling', workdir / 'new_site'
  found = [one for folder in folders
           for one in json.loads((folder / 'findings.json').read_text())]
  pairs = {(one['setting'], one['label'], one['ours'], one['theirs'].split(' (')[0])
           for one in found}
  assert pairs == {
    *(('in_domain', '', 'fed_medlora', other) for other in ('single_site', 'best single site')),
    *(('scaling', '2 sites', 'fed_medlora', other)
      for other in ('single_site', 'best single site')),
    *(('new_site', f'n = {n}', 'fed_medlora + n', LOCAL) for n in (0, 4)),
    ('new_site', 'n = 4', 'fed_medlora + n', 'fed_medlora as it was')}
  assert all(one['sentence'] in out for one in found)
  assert 'new site: without single_site, for want of one adapter' in out
  titles = ('Entities: every adapter on every site', 'Notes dealt out to so many sites: entities',
            'A new site, fine-tuned on so many of its sentences: entities')
  for folder, title in zip(folders, titles, strict=True):
    assert title in out and title in (folder / 'report.html').read_text()
  few = json.loads((workdir / 'new_site/4_sentences/fed_medlora/summary.json').read_text())
  assert few['train_examples'] == [4] and few['sites'] == ['synthetic_newsite']
  # The adapter as it is, asked at the new site: that of the federation's run.
  as_is = json.loads((workdir / 'new_site/0_sentences/fed_medlora/inputs.json').read_text())
  assert set(as_is['starting adapter']) == {'adapter_config.json', 'adapter_model.safetensors'}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(regimes, 'load_data', None)  # a second call must not read anything
    patch.setattr(regimes, 'load_corpora', None)
    # What a kill left while a file was written, and what a desktop leaves.
    for name in ('report.html.part', '.DS_Store'):
      (workdir / name).touch()
    assert compare.main(argv) == 0
  # Another federation under the new site's feet is noticed.
  (workdir / 'fed_medlora/adapter/adapter_config.json').write_text('{}')
  assert compare.main(argv) == 2
  assert 'starting adapter: adapter_config.json changed' in capsys.readouterr().err

"""What a run leaves of its notes: how many sentences its report quotes, and what is refused."""

import pytest

from fedmedjax.compare import api_run
from fedmedjax.experiment.config import leaves, validate
from fedmedjax.experiment.defaults import get_config
from fedmedjax.experiment.stored import quoted_sentences
from fedmedjax.store.files import check_workdir, plain, write_json
from fedmedjax.types import InputError

WARD = dict(name='ward', path='/nowhere', format='brat', mapping='schema')


def configured(
    sites=('synthetic_icu', 'chia'), external=('synthetic_external',), server='', **more):
  config = get_config()
  config.data.update(
    sites=sites, external=external, server_validation=server, folders=(WARD,))
  config.update_from_flattened_dict(more)
  validate(config)
  return config


@pytest.mark.parametrize(('sites', 'given', 'number'), [
  # A folder that no site is read from does not count.
  ({}, (), 6), ({'external': ()}, (), 6), ({'server': 'maccrobat2020'}, (), 6),
  ({'sites': ('synthetic_icu', 'ward')}, (), 0), ({'external': ('ward',)}, (), 0),
  ({'server': 'ward'}, (), 0),
  # Of notes that were given in Python a public name says nothing.
  ({}, ('chia',), 0), ({'sites': ('mine',)}, ('mine',), 0)])
def test_only_public_notes_are_quoted_unless_a_number_says_so(sites, given, number):
  assert quoted_sentences(configured(**sites), given) == number
  for asked in (0, 3):
    assert quoted_sentences(configured(**sites, **{'report.examples': asked}), given) == asked
  assert quoted_sentences(configured(**sites, **{'store.text': False}), given) == 0


@pytest.mark.parametrize(('settings', 'said'), [
  ({'report.examples': -2}, 'config.report.examples=-2: an integer >= -1 is allowed'),
  ({'store.text': 'no'}, "config.store.text='no': True or False is allowed"),
  ({'store.text': False, 'report.examples': 6},
   'config.report.examples=6: with config.store.text=False no text is kept')])
def test_what_is_refused(settings, said):
  config = get_config()
  with config.ignore_type():
    config.update_from_flattened_dict(settings)
  with pytest.raises(InputError) as error:
    validate(config)
  assert str(error.value).startswith(said)


def test_a_run_of_an_older_version_goes_on(tmp_path):
  """Its config.json knows no store.text and has 6 as the default of report.examples."""
  now = plain(leaves(configured(**{'store.text': False}).to_dict()))
  before = {key: value for key, value in now.items() if key != 'store.text'}
  write_json(tmp_path / 'config.json', before | {'report.examples': 6})
  assert check_workdir(tmp_path, now) is None


def test_answers_of_an_endpoint_lie_outside(tmp_path):
  study, mine = tmp_path / 'study', tmp_path / 'study' / 'api_small'
  mine.mkdir(parents=True)
  (mine / 'answers.jsonl').write_text('')

  def check(**settings):
    api_run.check_cache(configured(**settings), study, mine, 'small')

  check()
  for inside in ('', str(study), str(study / 'api_cache')):
    with pytest.raises(InputError, match='a folder outside of .*study is needed for the answers'):
      check(**{'store.text': False, 'api.cache': inside})
  elsewhere = {'store.text': False, 'api.cache': str(tmp_path / 'cache')}
  with pytest.raises(InputError, match='answers.jsonl: holds words .*/cache/api_small.jsonl, or'):
    check(**elsewhere)
  (mine / 'answers.jsonl').unlink()
  check(**elsewhere)

"""Which runs may go on in a folder, and what is read of a spoilt one."""

import pytest

from fedmedjax.store import files
from fedmedjax.store.files import check_workdir, claim
from fedmedjax.types import InputError


def test_only_the_keys_that_were_named_may_differ(tmp_path):
  """An endpoint's run may go on with another timeout, but its answers are of so many examples."""
  claim(tmp_path, {'api.shots': 0, 'api.timeout': 1.0})
  assert check_workdir(tmp_path, {'api.shots': 0, 'api.timeout': 2.0}, ('api.timeout',)) is None
  with pytest.raises(InputError, match=r'config\.api\.shots=0, this one has 5'):
    check_workdir(tmp_path, {'api.shots': 5, 'api.timeout': 1.0}, ('api.timeout',))


def test_a_run_may_go_on_with_other_devices(tmp_path):
  """Also one that was begun before there were meshes."""
  claim(tmp_path, {'seed': 1})
  assert check_workdir(tmp_path, {'seed': 1, 'mesh.site': 2}) is None


@pytest.mark.parametrize('begun, said', [
  ({'seed': 1}, 'another version of fedmedjax.* not in common config.fed.fairness; go on'),
  ({'seed': 1, 'fed.fairness': 1.0, 'fed.gone': 0}, r'not in common config\.fed\.gone;'),
  ({'seed': 2}, r'holds a run with config\.seed=2, this one has 1; choose another workdir$')])
def test_settings_of_another_version_are_named_as_such(tmp_path, begun, said):
  """But one that both versions know and that differs comes first."""
  claim(tmp_path, begun)
  with pytest.raises(InputError, match=said):
    check_workdir(tmp_path, {'seed': 1, 'fed.fairness': 1.0})


def test_a_mark_at_the_front_is_no_part_of_a_file(tmp_path):
  mark = b'\xef\xbb\xbf'
  (tmp_path / 'a.json').write_bytes(mark + b'{"seed": 1}')
  (tmp_path / 'a.jsonl').write_bytes(mark + b'{"seed": 1}\n')
  assert files.read_json(tmp_path / 'a.json') == {'seed': 1}
  assert files.read_lines(tmp_path / 'a.jsonl') == [{'seed': 1}]
  assert files.plain({'path': tmp_path}) == {'path': str(tmp_path)}


@pytest.mark.parametrize(
  'spoilt', [b'{"round": 2', b'{"round": \xff}\n', b'\xff\xfe\x00', b'[' * 10**6 + b'\n'])
def test_lines_are_read_up_to_the_first_spoilt_one(tmp_path, spoilt):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'{"round": 1}\n' + spoilt)
  assert files.read_lines(path) == [{'round': 1}]
  path.write_bytes(spoilt + b'{"round": 1}\n')
  assert files.read_lines(path) == []

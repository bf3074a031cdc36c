"""Which runs may go on in a folder."""

import pytest

from fedmedjax.types import InputError
from fedmedjax.writer import check_workdir, claim


def test_only_the_keys_that_were_named_may_differ(tmp_path):
  """An endpoint's run may go on with another timeout, but its answers are of so many examples."""
  claim(tmp_path, {'api.shots': 0, 'api.timeout': 1.0})
  assert check_workdir(tmp_path, {'api.shots': 0, 'api.timeout': 2.0}, ('api.timeout',)) is None
  with pytest.raises(InputError, match=r'config\.api\.shots=0, this one has 5'):
    check_workdir(tmp_path, {'api.shots': 5, 'api.timeout': 1.0}, ('api.timeout',))

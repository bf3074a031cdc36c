"""The public corpora, where they are: the one place that decides whether their tests are skipped.

They are no part of the repository. `.ci/run` sets FEDMEDJAX_REQUIRE_DATA when they lie beside the
checkout, and then nothing is skipped for want of them.
"""

import os
from pathlib import Path

import pytest

from fedmedjax.experiment.notes import data_root


def real_data(*names: str) -> Path:
  """The folder of the corpora, which holds `names`; else a skip, or a failure where CI has them."""
  root = data_root('')
  absent = [str(root / name) for name in (names or ('',)) if not (root / name).exists()]
  if absent:
    assert not os.environ.get('FEDMEDJAX_REQUIRE_DATA'), f'{absent[0]} is absent'
    pytest.skip(f'{absent[0]} is absent; FEDMEDJAX_DATA names the folder of the corpora')
  return root

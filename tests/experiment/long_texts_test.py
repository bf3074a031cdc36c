"""Groups of a step where a model's frequencies go by the longest example of a step."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedmedjax.data.site import SiteData
from fedmedjax.data.tokenize import TokenExample
from fedmedjax.experiment.lora import _check_groups
from fedmedjax.types import InputError


def test_a_step_that_would_rotate_otherwise_is_not_cut_into_groups():
  """Behind an instruction of 40 shared tokens an example of 25 ends at position 65 of 64."""
  def site(*lengths):
    part = SimpleNamespace(instruction=np.zeros(41, np.int32), validation=(), train=tuple(
      TokenExample(np.zeros(length, np.int32), 3) for length in lengths))
    return SiteData('ward', (), (part,), {})

  base = SimpleNamespace(config=SimpleNamespace(long_rope_divisors=(1.0, 2.0), rope_original=64))
  plain = SimpleNamespace(config=SimpleNamespace(long_rope_divisors=(), rope_original=0))
  _check_groups(0, base, [site(25)])
  _check_groups(2, plain, [site(25)])
  _check_groups(2, base, [site(24, 10)])
  with pytest.raises(InputError, match="micro_batch=2: an example of site 'ward' ends at pos"):
    _check_groups(2, base, [site(24), site(10, 25)])

"""The trial of products: medians of planted seconds, whatever the first calls take."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from fedmedjax.runtime import product_trial


@pytest.mark.parametrize('seconds, expected', [
  # float32 and bfloat16 in turns, the first of each compiles; medians 6 and 2, then 4 and 8.
  ([(50, 1)] + [(6, 2), (6, 9), (6, 2), (1, 2), (9, 1)], 3.0),
  ([(1, 90)] + [(4, 8)] * 4 + [(40, 8)], 0.5),
])
def test_medians_after_the_first(seconds, expected):
  times, now = itertools.chain.from_iterable(seconds), [0.0]

  def work() -> None:
    now[0] += next(times)

  calls = dict.fromkeys(('float32', 'bfloat16'), work)
  assert product_trial.gain(calls, lambda: now[0]) == expected
  assert next(times, None) is None


def test_both_forms_are_multiplied(monkeypatch):
  """What is timed is one function of either kernel; its results differ by rounding operands."""
  for name in ('_TOKENS', '_WIDTH', '_INNER'):
    monkeypatch.setattr(product_trial, name, 32)
  found = []
  monkeypatch.setattr(product_trial.jax, 'block_until_ready', found.append)
  for call in product_trial._calls().values():
    call()
  wide, rounded = found
  for one, other in zip(wide, rounded, strict=True):
    assert one.dtype == other.dtype == jnp.float32 and (one != other).any()
    np.testing.assert_allclose(other, one, atol=0.2)

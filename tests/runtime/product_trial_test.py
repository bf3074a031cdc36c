"""The trial of products: the least of planted seconds, whatever the first calls take."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from fedmedjax.runtime import product_trial


@pytest.mark.parametrize('seconds, expected', [
  # float32 and bfloat16 in turns, the first of each compiles; then 6 and 2, 4 and 8 at least. Most
  # calls of one form may meet another job.
  ([(50, 1)] + [(6, 20), (60, 9), (8, 2)] * 3, 3.0),
  ([(1, 2)] + [(4, 8)] + [(40, 8)] * 8, 0.5),
])
def test_the_least_after_the_first(seconds, expected):
  times, now = itertools.chain.from_iterable(seconds), [0.0]

  def work() -> None:
    now[0] += next(times)

  calls = dict.fromkeys(('float32', 'bfloat16'), work)
  assert product_trial.gain(calls, lambda: now[0]) == expected
  assert next(times, None) is None


@pytest.mark.parametrize('text, lacks', [
  ('flags\t\t: fpu avx2 fma\nbugs\t: amx_bf16\nflags\t\t: fpu avx2\n', True),
  ('flags\t\t: fpu avx512f avx512_bf16\n', False), ('flags\t\t: amx_tile amx_bf16\n', False),
  # Other processors list features elsewhere; they are tried.
  ('Features\t: fp asimd bf16\n', False), (None, False)])
def test_flags_rule_units_out(text, lacks, tmp_path):
  if text is not None:
    (tmp_path / 'cpuinfo').write_text(text)
  assert product_trial.lacks_units(tmp_path / 'cpuinfo') == lacks


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

"""How long a round is said to take, by the lines of the rounds before and by numbers of ours."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from fedmedjax.experiment.execution import Execution
from fedmedjax.runtime.progress import Forecast, Reporter
from fedmedjax.train import round_progress
from fedmedjax.train.round_progress import StepDisplay, forecast, shown

NOW = {'round': 4, 'tokens': 1000, 'local_steps': 7}


def study(steps=False, parameters=10**6):
  """Three sites whose rounds compute one padded step for each taken one."""
  return SimpleNamespace(
    spread=None, options=SimpleNamespace(steps=steps, rounds=9, pooled=False),
    trainable=SimpleNamespace(whole_parameters=parameters),
    site_map=lambda chunk: SimpleNamespace(laid_out=lambda steps: 2 * steps.sum()),
    data=SimpleNamespace(sites=[SimpleNamespace(name=name) for name in 'abc']))


def told(study, lines, seconds=None, monkeypatch=None):
  if monkeypatch:
    monkeypatch.setattr(
      round_progress.duration, 'round_seconds', lambda study, plan, inputs, computed: seconds)
  return forecast(
    study, SimpleNamespace(execution=Execution(1, 'none')),
    SimpleNamespace(steps=np.array([3, 4, 0])), (), NOW, lines)


def line(seconds, steps=5, share=0.5, chunk=1):
  return {'seconds': seconds, 'local_steps': steps, 'useful_step_share': share, 'chunk': chunk,
          'remat': 'none', 'sites': ['a']}


def test_a_round_is_expected_to_be_like_the_last_three_of_its_kind():
  """7 steps are taken, so 14 are computed. The last three with the same execution computed 10, 20
  and 10 steps in 5, 25 and 10 s: a second a step. One with another chunk, and one in which nobody
  trained, say nothing of it."""
  lines = [line(900.0), line(5.0), line(25.0, steps=5, share=0.25), line(10.0, steps=10, share=1.0),
           line(700.0, chunk=2), {'seconds': 0.0, 'local_steps': 0, 'skipped': True}]
  assert told(study(), lines) == Forecast(14.0, 'from the rounds before')


def test_a_first_round_is_expected_to_take_what_its_products_do(monkeypatch):
  """Six FLOP for each of 1e9 parameters and 1,000 tokens are worth counting, for each of 1e6 they
  are not. A model without products has no forecast."""
  large = study(parameters=10**9)
  assert told(large, [], 80.0, monkeypatch) == Forecast(80.0, 'from its matrix products')
  assert told(large, [line(700.0, chunk=2)], 80.0) == Forecast(80.0, 'from its matrix products')
  assert told(study(), [], 80.0, monkeypatch) is None
  assert told(large, [], None, monkeypatch) is None


@pytest.mark.parametrize('steps', [False, True])
def test_what_is_shown_of_a_round(steps):
  """By default what the clock says; where steps are asked for, each with its site's name."""
  reporter, display = Reporter(Console(file=io.StringIO(), width=200)), StepDisplay()
  one = study(steps)
  assert told(one, [line(10.0)]) == (
    None if steps else Forecast(14.0, 'from the rounds before'))
  with shown(one, reporter, display, NOW, None):
    for site, active in ((0, True), (2, False), *[(2, True)] * 6):
      if steps:
        display(np.int32(site), np.int32(0), np.float32(1.25), np.bool_(active))
  said = reporter.console.file.getvalue().splitlines()
  # How long it took is said in the round's sentence.
  assert said[0] == 'round 4/9 ...' and len(said) == 1 + steps
  assert not steps or said[1].startswith('round 4/9: 7/7, 0 s, 0 s left c loss 1.250')

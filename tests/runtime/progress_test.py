"""What people are shown: their own names and words as they are, on a terminal and in a file."""

import io
import re
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console
from rich.table import Table

from fedmedjax.runtime import notebook, progress
from fedmedjax.runtime.phrases import duration, many
from fedmedjax.runtime.progress import Forecast, Reporter

_WORDS = '[/b] [seed=1] :pill: x'


@pytest.mark.parametrize('terminal', ['', '1'])
def test_brackets_and_colons_are_text(terminal, monkeypatch):
  """Markup would swallow one and raise at the other; a line, a task, its bar, and a table."""
  for name, value in {'FORCE_COLOR': terminal, 'NO_COLOR': '1', 'TERM': 'xterm',
                      'COLUMNS': '120'}.items():
    monkeypatch.setenv(name, value)
  reporter = Reporter()
  reporter.console.file = shown = io.StringIO()
  assert reporter.console.is_terminal == bool(terminal)
  table = Table(title=f'title {_WORDS}', caption=f'caption {_WORDS}')
  table.add_column(f'column {_WORDS}')
  table.add_row(f'cell {_WORDS}')
  reporter.say(f'runs/{_WORDS}: finished')
  reporter.say(table)
  with reporter.live(), reporter.task(f'task {_WORDS}') as advance:
    advance(note=f'note {_WORDS}')
    reporter.say(reporter._bars.get_renderable())
  text = ' '.join(re.sub(r'\x1b\[[?0-9;]*[a-zA-Z]', '', shown.getvalue()).split())
  for place in ('runs/', 'title ', 'caption ', 'column ', 'cell ', 'task ', 'note '):
    assert f'{place}{_WORDS}' in text, place


def test_warnings_are_said_again_once_each():
  reporter = Reporter(Console(file=io.StringIO(), width=200))
  for text in ('site a is left out', 'the lock is old', 'site a is left out'):
    reporter.warn(text)
  reporter.say('scores')
  reporter.repeat_warnings()  # not yet: all are on the screen
  before = len(reporter.console.file.getvalue().splitlines())
  for _ in range(40):
    reporter.say('a line')
  reporter.warn('just now')
  reporter.repeat_warnings()
  said = reporter.console.file.getvalue().splitlines()
  assert before == 4
  del said[before:before + 41]
  assert said[:4] == [
    'warning: site a is left out', 'warning: the lock is old', 'warning: site a is left out',
    'scores']
  assert said[4:] == [
    'Warnings of this run, again:', 'warning: site a is left out', 'warning: the lock is old']


def test_without_warnings_nothing_is_repeated():
  reporter = Reporter(Console(file=io.StringIO()))
  reporter.repeat_warnings()
  assert reporter.console.file.getvalue() == ''


class Cell:
  """A notebook's `display`: outputs of the cell, each the list of what it showed in turn."""

  def __init__(self):
    self.outputs = []

  def __call__(self, drawing, display_id):
    assert display_id is True
    self.outputs.append([drawing])
    return self

  def update(self, drawing):
    self.outputs[-1].append(drawing)


def test_in_a_notebook_everything_is_one_output_that_changes(monkeypatch):
  monkeypatch.setattr(notebook, '_PAUSE', 0.0)
  cell = Cell()
  reporter = Reporter(Console(force_jupyter=True, file=io.StringIO()), cell)
  table = Table(title='Sites')
  table.add_column('site')
  table.add_row(f'<b> {_WORDS}')
  with reporter.live():
    reporter.say(table)
    with reporter.task('round 1/2', 2) as advance:
      advance(note='loss 1.5')
      under_way = cell.outputs[0][-1]
      advance(note='loss 1.4')
    reporter.warn('site b is left out')
  # One output, and nothing that rich prints beside it.
  assert len(cell.outputs) == 1 and reporter.console.file.getvalue() == ''
  assert 'round 1/2' in repr(under_way) and '1/2' in repr(under_way)
  assert 'loss 1.5' in repr(under_way) and f'<b> {_WORDS}' in repr(under_way)
  last = cell.outputs[0][-1]
  lines = repr(last).splitlines()
  # The bar is gone; its line and what was said before it stay.
  assert 'loss' not in repr(last) and lines[-1] == 'warning: site b is left out'
  assert re.fullmatch(r'round 1/2: \d+\.\d s', lines[-2])
  assert f'<b> {_WORDS}' in repr(last)
  assert '&lt;b&gt;' in last._repr_html_() and '<b>' not in last._repr_html_()


def test_a_notebook_is_not_drawn_more_often_than_eyes_see():
  cell = Cell()
  reporter = Reporter(Console(force_jupyter=True, file=io.StringIO()), cell)
  with reporter.task('round 1/1', 1000) as advance:
    for _ in range(1000):
      advance()
  # The first bar, some in between, and the line at the end.
  assert 2 <= len(cell.outputs[0]) < 100


def test_the_real_display_of_a_notebook_is_found(monkeypatch):
  """By its import, since a notebook has it and nobody else needs it."""
  cell = Cell()
  module = types.ModuleType('IPython.display')
  module.display = cell
  monkeypatch.setitem(sys.modules, 'IPython', types.ModuleType('IPython'))
  monkeypatch.setitem(sys.modules, 'IPython.display', module)
  Reporter(Console(force_jupyter=True, file=io.StringIO())).say('hello')
  assert [repr(drawing) for drawing in cell.outputs[0]] == ['hello\n']


@pytest.fixture
def at(monkeypatch):
  """at(seconds, reporter): the line of a file that is written when the task has taken so long."""
  now = [0.0]
  monkeypatch.setattr(progress, 'time', types.SimpleNamespace(monotonic=lambda: now[0]))
  monkeypatch.setattr(progress, '_TICK', 0.001)

  def line(seconds: float, reporter: Reporter, wait: float = 5.0) -> str:
    before, now[0] = reporter.console.file.getvalue(), seconds
    until = time.monotonic() + wait
    while time.monotonic() < until and reporter.console.file.getvalue() == before:
      time.sleep(0.001)
    return reporter.console.file.getvalue()[len(before):].rstrip('\n')

  return line


def test_a_file_is_told_the_time_left_by_the_clock(at):
  """Of 400 s expected: a line each 20 s at most, since 20 lines are enough; never 100 %."""
  reporter = Reporter(Console(file=io.StringIO(), width=200))
  said = lambda seconds, **more: at(seconds, reporter, **more)  # noqa: E731
  with reporter.clock('round 2/9', Forecast(400.0, 'from the rounds before')):
    assert reporter.console.file.getvalue() == 'round 2/9 ...\n'
    assert said(19.0, wait=0.05) == ''
    assert said(30.5) == (
      'round 2/9: 30 s, about 6:10 min left (7 %, estimated from the rounds before)')
    assert said(49.0, wait=0.05) == ''
    assert said(330.0) == (
      'round 2/9: 5:30 min, about 1:10 min left (82 %, estimated from the rounds before)')
    assert said(399.9) == (
      'round 2/9: 6:40 min, about 1 s left (99 %, estimated from the rounds before)')
    assert said(500.0) == (
      'round 2/9: 8:20 min, longer than expected (99 %, estimated from the rounds before)')
    # Beyond what was expected, a line each twentieth of the time so far: 526 - 500 < 526 / 20.
    assert said(526.0, wait=0.05) == '' and said(527.0).startswith('round 2/9: 8:47 min, longer')
  assert reporter.console.file.getvalue().endswith('\nround 2/9: 8:47 min\n')


@pytest.mark.parametrize('forecast', [
  None, Forecast(0.0, ''), Forecast(float('nan'), ''), Forecast(float('inf'), '')])
def test_without_a_forecast_only_the_time_so_far_is_told(at, forecast):
  reporter = Reporter(Console(file=io.StringIO(), width=200))
  with reporter.clock('round 1/9', forecast):
    assert at(9.0, reporter, wait=0.05) == '' and at(24.0, reporter) == 'round 1/9: 24 s'


def test_the_bar_of_a_terminal_says_that_it_is_an_estimate(at, monkeypatch):
  for name, value in {'FORCE_COLOR': '1', 'NO_COLOR': '1', 'TERM': 'xterm',
                      'COLUMNS': '150'}.items():
    monkeypatch.setenv(name, value)
  reporter = Reporter()
  reporter.console.file = io.StringIO()
  with reporter.clock('round 1/2', Forecast(100.0, 'from its matrix products')):
    at(24.0, reporter, wait=0.05)
    reporter.say(reporter._bars.get_renderable())
  text = ' '.join(reporter.console.file.getvalue().split())
  assert re.search(r'round 1/2 \S.* 24 % .* about 1:16 min left estimated from its matrix', text)
  assert text.endswith('round 1/2: 24 s')


@pytest.mark.parametrize('spoils', [KeyboardInterrupt, RuntimeError, None])
def test_the_clock_ends_with_its_task(spoils, monkeypatch):
  """Whatever ends it, an output that nobody reads any more included."""
  monkeypatch.setattr(progress, '_TICK', 0.001)
  monkeypatch.setattr(progress, '_QUIET', 0.0)
  reporter = Reporter(Console(file=io.StringIO()))
  before = threading.active_count()
  if spoils:
    with pytest.raises(spoils), reporter.clock('round 1/1'):
      assert threading.active_count() == before + 1
      raise spoils
  else:
    with pytest.raises(ValueError, match='closed file'), reporter.clock('round 1/1'):
      reporter.console.file.close()
      while threading.active_count() > before:
        time.sleep(0.001)
  assert threading.active_count() == before


def test_the_clock_moves_while_a_program_computes(monkeypatch):
  """A compiled program does not hold the interpreter's lock, on a CPU neither."""
  monkeypatch.setattr(progress, '_TICK', 0.005)
  monkeypatch.setattr(progress, '_QUIET', 0.0)
  program = jax.jit(lambda x, times: jax.lax.fori_loop(0, times, lambda _, x: jnp.sin(x @ x), x))
  x, times = jnp.ones((200, 200)), 1
  reporter = Reporter(Console(file=io.StringIO()))
  seconds = 0.0
  while seconds < 0.2:
    times, begun = 2 * times, time.monotonic()
    before = len(reporter.console.file.getvalue().splitlines())
    with reporter.clock('round 1/1', Forecast(0.001, '')):
      jax.device_get(program(x, times))
    seconds = time.monotonic() - begun
  assert len(reporter.console.file.getvalue().splitlines()) - before > 2 + 4


@pytest.mark.parametrize('seconds, words', [
  (0.4, '0 s'), (59.4, '59 s'), (59.6, '1:00 min'), (100, '1:40 min'), (3599.4, '59:59 min'),
  (3600, '1:00 h'), (11_099, '3:05 h')])
def test_seconds_as_a_sentence_says_them(seconds, words):
  assert duration(seconds) == words


def test_one_of_a_kind_is_no_plural():
  assert [many(count, 'note') for count in (0, 1, 1200)] == ['0 notes', '1 note', '1,200 notes']

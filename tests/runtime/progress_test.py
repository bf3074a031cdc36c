"""What people are shown: their own names and words as they are, on a terminal and in a file."""

import io
import re
import sys
import types

import pytest
from rich.console import Console
from rich.table import Table

from fedmedjax.runtime import notebook
from fedmedjax.runtime.progress import Reporter

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
  reporter.repeat_warnings()
  said = reporter.console.file.getvalue().splitlines()
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

"""What people are shown: their own names and words as they are, on a terminal and in a file."""

import io
import re

import pytest
from rich.table import Table

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

"""A site from three tables, as docs/data.md shows it."""

import json
from pathlib import Path

from shown_files import shown_command, shown_files

from fedmedjax import describe
from fedmedjax.data.formats.corpora import SiteFolder, load_folder
from fedmedjax.types import Relation, Span

_PAGE = (Path(__file__).parents[2] / 'docs' / 'data.md').read_text()


def test_the_clinic_of_the_page(tmp_path, monkeypatch):
  """Of its two patients one is tested on; 'No fever' is [23, 31): a negation and a problem."""
  root = Path.cwd()
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'configs').symlink_to(root / 'configs')
  for name, text in shown_files(_PAGE).items():
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
  site = load_folder(SiteFolder('clinic', 'clinic', 'tables', 'clinic.toml', test_share=0.5))
  notes = {note.name: note for note in (*site.train, *site.test)}
  assert notes.keys() == {'1', '2'} and notes['1'].source == 'p1' and len(site.train) == 1
  assert notes['1'].spans == (
    Span(0, 4, 'problem'), Span(11, 21, 'drug'), Span(26, 31, 'problem'), Span(23, 25, 'negation'))
  assert notes['1'].relations == (Relation('negation', 2, 3),)
  assert describe.main(shown_command(_PAGE, "'clinic'")) == 0
  numbers = json.loads(next((tmp_path / 'runs' / 'clinic').glob('*.json')).read_text())
  assert 'clinic' in json.dumps(numbers)

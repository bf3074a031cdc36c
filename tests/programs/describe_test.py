"""The description of the quick start's sites, with one of a user's own: tables, files, mistakes."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from rich.console import Console

from fedmedjax import describe
from fedmedjax.data.statistics import site_statistics
from fedmedjax.data.synthetic.cohorts import generate_cohort
from fedmedjax.report import description


def test_sites_are_described_without_a_model(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr('fedmedjax.model.files.load.MODEL_PACKAGE', 'no-such-package')
  (tmp_path / 'ward.bio').write_text(''.join(
    f'# newdoc id = n{i}\nNo O\ncough B-problem\n{i} O\n' for i in range(5)))
  own = {'name': 'ward', 'path': str(tmp_path / 'ward.bio'), 'format': 'conll',
         'mapping': 'schema'}
  assert describe.main([
    'describe', '--config=configs/quickstart.py', f'--config.data.folders=({own},)',
    "--config.data.sites=('synthetic_clinic', 'synthetic_newsite')",
    "--config.data.external=('ward',)", f'--output={tmp_path / "out"}']) == 0
  said = capsys.readouterr().out
  for words in ('Sites: size', 'ward (external)', 'bits (0 = alike', 'synthetic_newsite'):
    assert words in said
  found = json.loads((tmp_path / 'out' / 'description.json').read_text())
  ward = found['sites']['ward']
  assert (ward['test_notes'], ward['words'], ward['entities']) == (5, 15, {'problem': 5})
  assert set(found['jensen_shannon_bits']) == {'entity types', 'vocabulary'}
  drawn = ElementTree.parse(tmp_path / 'out' / 'description.svg')
  assert 'ward (external)' in ''.join(drawn.getroot().itertext())
  assert (tmp_path / 'out' / 'description.png').stat().st_size > 10_000


@pytest.mark.parametrize('width', [80, 120])
def test_no_number_is_cut_on_a_narrow_terminal(width):
  """Names that are long, and more sites than a line has room for."""
  one = site_statistics(generate_cohort('synthetic_clinic'))
  sites = [one._replace(name=f'a_site_of_a_long_name_{n}') for n in range(9)]
  names = [site.name for site in sites]
  with (console := Console(width=width)).capture() as shown:
    for table in (*description.size_tables(sites, names[-1:]), description.type_table(sites, ()),
                  *description.divergence_tables('words', np.full((9, 9), 0.125), names)):
      console.print(table)
  said = shown.get()
  assert '\N{HORIZONTAL ELLIPSIS}' not in said and said.count('0.125') == 81
  for value in (len(one.sentence_words), one.sentence_words.sum(), one.modifiers.total()):
    assert said.count(f' {value:,} ') == 9


@pytest.mark.parametrize(('folders', 'said'), [
  ('({"name": "a", "path": "n", "format": "brat", "mapping": "schema", "source": "(a)(b)"},)',
   ".source='(a)(b)': a regular expression with at most one group is allowed"),
  ('({"name": "a"},)', "config.data.folders[0]: 'format' is missing; its keys are name, path"),
  ('({"name": "chia", "path": "x", "format": "brat", "mapping": "chia"},)', '.name='),
  ('({"nam": "a"},)', "'nam' is unknown"),
  ('({"name": "a", "path": "x", "format": "xls", "mapping": "m"},)', 'one of brat, i2b2'),
  ('({"name": "a", "path": "x", "format": "brat", "mapping": "m", "test_share": 2},)', '[0, 1]'),
  ('({"name": "a", "path": "x", "format": "brat", "mapping": "m", "annotated": ("dose",)},)',
   ".annotated=('dose',): a tuple of some of problem, treatment, test, drug, or () is allowed"),
  ('({"name": "a", "path": "x", "format": "brat", "mapping": "m"},'
   '{"name": "a", "path": "y", "format": "brat", "mapping": "m"})', 'another folder has this name'),
  ('("a",)', "a tuple of dict(name="),
])
def test_descriptions_of_sites_are_checked(folders, said, capsys):
  assert describe.main(
    ['describe', '--config=configs/quickstart.py', f'--config.data.folders={folders}']) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and said in error, error

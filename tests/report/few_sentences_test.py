"""Fewer sentences before training than after it: tables and the page say so, and pair them."""

import html

from invented_run import entry, invent, write
from rich.console import Console

from fedmedjax import report
from fedmedjax.report.terminal import score_table


def counted(found: int, missed: int) -> dict:
  """Two sources of one type; of each so many entities found and missed, by both kinds of match."""
  return {'sources': ['a', 'b'], 'ner': [[[[found, 0, missed]] * 2] * 2] * 2}


def test_a_run_is_set_against_zero_shot_on_the_same_sentences(tmp_path):
  """On all of its sentences the run has 2 / 3, since half of the entities are missed; on those that
  were answered before training it has 1, and the untrained model 0: 1 above, and not 2 / 3."""
  sites = ('icu', 'ward')
  folder = invent(tmp_path / 'mine', external=(), f1=2 / 3, summary={
    'test_sources': [2, 2], 'zero_shot': {
      'scores': {site: {'ner': entry(0.0)} for site in sites},
      'trained': {site: {'ner': entry(1.0)} for site in sites},
      'sentences': {'icu': 6, 'ward': 5}}})
  write(folder / 'predictions' / 'counts.json', {
    'scores': {site: counted(1, 1) for site in sites},
    'zero_shot': {site: counted(0, 2) for site in sites},
    'beside_zero_shot': {site: counted(2, 0) for site in sites}})
  report.freshen(folder, 0)
  page = html.unescape((folder / report.FILE).read_text())
  assert 'mean strict F1 of 0.667 on 2 sites, 1.000 above the untrained model (on 6 sentences ' in (
    ' '.join(page.split()))
  assert 'zero-shot (6 sentences)' in page
  summary = report.html.files.read_json(folder / 'summary.json')
  with (console := Console(width=200)).capture() as shown:
    console.print(score_table(summary))
  said = ' '.join(shown.get().split())
  assert 'Zero-shot is of 6 sentences a cohort, on which the run has a strict mean of 1.000' in said

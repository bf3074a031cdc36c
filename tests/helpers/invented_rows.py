"""Folders of runs of an own task that never ran: yes/no questions at two sites and a third one."""

from pathlib import Path

import numpy as np
from invented_run import NOTE, invent, line, write

SITES, ELSEWHERE = ('icu', 'ward'), 'elsewhere'
# Metrics of one number a row: one that is shipped, and a user's own, which leaves [0, 1].
BY_ROW = ('exact_match', 'my.gain')


def row(number: int, generated: str, target: str, **more) -> dict:
  """A prediction record."""
  text = f'{NOTE} Question {number}?'
  return {
    'document': f'row_{number:03}', 'sentence_start': 0, 'task': 'text',
    'model_input': f'{text}\n', 'generated': generated, 'target': target,
    'output_heading': '\n'} | more


def counts(values: dict[str, list[float]]) -> dict:
  """A site's entry of counts.json: sources of one row each, by metric the value of each row."""
  out = {'sources': [f's{i}' for i in range(len(values['exact_match']))]}
  return out | {f'text.{name}': np.stack([
    np.broadcast_to([v, 1 - v, 1 - v], (2, 2, 3)) for v in found]).tolist()
    for name, found in values.items()}


def scores(values: dict[str, list[float]], whole: float = 7.25) -> dict:
  """A site's entry of summary.json: means over rows, and a number for the whole site."""
  return {'text': {name: {
    'value': float(np.mean(found)), 'ci95': [float(np.mean(found)) - 0.1, float(np.mean(found))]}
    for name, found in values.items()} | {'whole': {'value': whole, 'ci95': None}}}


def invent_rows(folder: Path, right: dict[str, list[int]], **more) -> Path:
  """A finished run; `right` says which rows of a site are answered rightly (1) or not (0).

  Their own metric 'my.gain' is -2 for a right answer and -4 for another; before training all
  answers are wrong.
  """
  values = {site: {'exact_match': found, 'my.gain': [-2 * (2 - hit) for hit in found]}
            for site, found in right.items()}
  before = {site: {'exact_match': [0] * len(found), 'my.gain': [-4] * len(found)}
            for site, found in right.items()}
  nothing = {'asked': 0, 'copied': 0, 'unreadable': 0}
  answers = dict.fromkeys(right, nothing)
  lines = [line(n, SITES, validation_f1=0.25 * n, validation_f1_sites=dict.fromkeys(SITES, 0.25))
           for n in (1, 2)]
  invent(
    folder, sites=SITES, external=(ELSEWHERE,), lines=lines,
    config={'data.tasks': ['text']} | more.pop('config', {}),
    summary={
      'scores': {site: scores(found) for site, found in values.items()}, 'answers': answers,
      'test_sources': [len(found) for found in right.values()],
      'copy_rate': None, 'parse_failure_rate': None, 'dropped': 0, 'compile_seconds': 1.0,
      'simulated_seconds': 0.0, 'examples_per_second': 1.0, 'peak_memory_bytes': 1,
      'cross_site': None, 'warnings': [],
      'zero_shot': {'scores': {site: scores(found) for site, found in before.items()},
                    'answers': answers}} | more.pop('summary', {}))
  for site, found in right.items():
    for place in ('', 'zero_shot/'):
      write(folder / 'predictions' / f'{place}{site}.jsonl', *(
        row(n, ('no', 'yes')[bool(hit and not place)] + '\n', 'yes')
        for n, hit in enumerate(found)), lines=True)
  write(folder / 'predictions' / 'counts.json', {
    'scores': {site: counts(found) for site, found in values.items()},
    'zero_shot': {site: counts(found) for site, found in before.items()}})
  write(folder / 'sites.json', described_rows(*right))
  return folder


def described_rows(*names: str) -> dict:
  """sites.json."""
  apart = [[0.0 if i == j else 0.125 for j in names] for i in names]
  return {
    'sites': {name: {
      'external': name == ELSEWHERE, 'types': [], 'train_notes': 12, 'test_notes': 4,
      'sentences': 16, 'words': 321, 'vocabulary': 99, 'entities': {}, 'modifiers': {},
      'sentence_words_quantiles': [1, 2, 17, 19, 22], 'report': {'leaked_documents': 3},
      'targets': {'rows': 16, 'different': 2, 'commonest': 12, 'counts': [12, 4],
                  'words_quantiles': [1, 1, 1, 1, 1]}} for name in names},
    'training_sites': 2, 'jensen_shannon_bits': {
      'targets': [[0.0 if i == j else None for j in names] for i in names], 'vocabulary': apart},
    'examples': {name: {'text': {'train': 10, 'validation': 2, 'test': 4}} for name in names}}

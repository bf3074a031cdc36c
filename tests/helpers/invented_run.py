"""Folders of runs that never ran: invented files with all that a report has to cope with."""

import json
from pathlib import Path

KINDS = ('problem', 'treatment', 'test', 'drug')
# A note's text and names are other people's: none of this may become part of the page.
SCRIPT = '<script>document.title = "owned"</script>'
NOTE = f'Given {SCRIPT} aspirin & "rest" for zyxwarts today.'


def entry(f1: float, *, kinds=KINDS) -> dict:
  """Scores of a task whose every F1 is `f1` strict, and half-way to 1 lenient."""
  def of(value):
    return {'precision': value, 'recall': value, 'f1': value}

  both = {'strict': f1, 'lenient': (1 + f1) / 2}
  return {
    kind: {name: of(value) | {'ci95': [value - 0.05, value]}
           for name in ('typed', 'untyped', 'macro')} for kind, value in both.items()
  } | {'per_type': {kind: {
    name: of(value) for name, value in both.items()} | {'gold': 4, 'predicted': 3}
    for kind in kinds}}


def record(predicted=(), gold=(), text=NOTE, start=100, **more) -> dict:
  """A prediction record; spans are given with offsets into the sentence."""
  def placed(spans):
    return [[begin + start, end + start, kind] for begin, end, kind in spans]

  return {
    'document': 'note_7', 'sentence_start': start, 'task': 'ner',
    'model_input': f'{text}\n### Output Text:\n', 'generated': '', 'predicted': placed(predicted),
    'gold': placed(gold), 'parse_failed': False, 'copied': True, 'dropped': 0} | more


def write(path: Path, *values, lines: bool = False) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(value) + '\n' for value in values) if lines else
                  json.dumps(values[0]))


def line(number: int, sites, **more) -> dict:
  count = len(sites)
  return {
    'round': number, 'sites': list(sites), 'steps': [2] * count, 'local_steps': 2 * count,
    'bytes_up': 500_000, 'bytes_down': 250_000, 'seconds': 1.5, 'simulated_seconds': 0.0,
    'train_loss': [1.0 / (number + site) for site in range(1, count + 1)],
    'validation_loss': [None] * count, 'weights': [1 / count] * count,
    'update_norm': [0.5] * count, 'cosine': [0.9] * count, 'product_gap': 0.01 * number,
    'quarantined': []} | more


def invent(
  folder: Path, *, sites=('icu', 'ward'), external=('elsewhere',), f1: float = 0.5,
  summary=None, lines=None, records=None, config=None,
) -> Path:
  """A finished run; `summary` and `config` change what they name."""
  tested = (*sites, *external)
  lines = [line(n, sites) for n in (1, 2)] if lines is None else lines
  write(folder / 'config.json', {
    'fed.preset': 'fed_medlora', 'data.sites': list(sites), 'seed': 3} | (config or {}))
  write(folder / 'summary.json', {
    'preset': 'fed_medlora', 'seed': 3, 'rounds': len(lines), 'sites': list(sites),
    'external': list(external), 'train_examples': [10] * len(sites), 'partition': None,
    'scores': {site: {'ner': entry(f1)} for site in tested}, 'bytes_up': 1_000_000,
    'bytes_down': 500_000, 'bytes_full_model': 150_000_000, 'adapter_parameters': 1000,
    'base_parameters': 100_000, 'local_steps': 8, 'site_weights': [], 'zero_shot': None,
    'global': None, 'wall_seconds': 90.0, 'versions': {'jax': '0.10'}} | (summary or {}))
  write(folder / 'metrics.jsonl', *lines, lines=True)
  wrong = [record([(6, 12, 'drug')], [(0, 5, 'problem'), (6, 12, 'test')])]
  for site in tested:
    write(folder / 'predictions' / f'{site}.jsonl', *(wrong if records is None else records),
          lines=True)
  return folder


def described(*sites: str) -> dict:
  """sites.json."""
  one = {
    'external': False, 'types': list(KINDS), 'train_notes': 3, 'test_notes': 1, 'sentences': 9,
    'words': 1234, 'vocabulary': 99, 'sentence_words_quantiles': [1, 2, 7, 9, 12],
    'entities': {'problem': 3, 'drug': 1}, 'modifiers': {'route': 2},
    'report': {'used_nested': 5, 'held_out_test_entities_percent': 30.5}}
  apart = [[0.0 if i == j else 0.25 for j in sites] for i in sites]
  return {
    'sites': {site: one for site in sites}, 'training_sites': len(sites),
    'jensen_shannon_bits': {'entity types': apart, 'vocabulary': apart},
    'examples': {site: {'ner': {'train': 8, 'validation': 1, 'test': 4}} for site in sites}}

"""What docs/files.md says that a run writes, and what a finished run has written."""

import json
import re
from pathlib import Path

from fedmedjax.eval.metrics import AVERAGES, KINDS

FILES_PAGE = Path(__file__).parents[2] / 'docs' / 'files.md'
_SOME = '(some runs)'


def documented(heading: str, page: str | None = None) -> tuple[set[str], set[str]]:
  """(keys that every run has, keys that some runs have) of the table below a heading."""
  page = FILES_PAGE.read_text() if page is None else page
  part = page.split(f'\n## {heading}\n')[1].split('\n## ')[0]
  rows = re.findall(r'^\| (`.*?) \| (.*) \|$', part, re.M)
  keys: tuple[set[str], set[str]] = set(), set()
  for names, meaning in rows:
    keys[meaning.startswith(_SOME)].update(re.findall(r'`([^`]+)`', names))
  return keys


def _nested(value, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
  """Paths of the leaves of a JSON object; an object without entries is a leaf."""
  if not isinstance(value, dict) or not value:
    return {path}
  return {leaf for key, entry in value.items() for leaf in _nested(entry, (*path, key))}


def _general(path: tuple[str, ...]) -> str:
  """A path of summary.json with SITE, TASK, MATCH, MEAN and TYPE in the place of names."""
  head, *rest = path
  if head in ('zero_shot', 'global') and rest:
    return f'{head}.{rest[0]}'
  if head == 'answers':
    return '.'.join((head, 'SITE', *rest[1:]))
  if head in ('cross_site', 'teacher_forced'):
    return head
  if head not in ('scores', 'instructions', 'shots'):
    return '.'.join((head, *rest))
  _, _, *rest = rest
  if path[2] == 'text' and head == 'scores':
    return '.'.join((head, 'SITE', 'text', 'METRIC', *rest[1:]))
  out = [head, 'SITE', 'TASK']
  if rest and rest[0] == 'per_type':
    out += ['per_type', 'TYPE']
    rest = rest[2:]
  for name in rest:
    out.append('MATCH' if name in KINDS else 'MEAN' if name in AVERAGES else name)
  return '.'.join(out)


def summary_keys(summary: dict) -> set[str]:
  """The keys of a summary.json of entity recognition, in the form of docs/files.md."""
  return {_general(path) for path in _nested(summary)}


def differences(heading: str, written: set[str], page: str | None = None) -> dict[str, set[str]]:
  """What docs/files.md lacks and has too much, {} when it says what was written."""
  always, some = documented(heading, page)
  found = {'not in docs/files.md': written - always - some, 'not written': always - written}
  return {name: keys for name, keys in found.items() if keys}


def undocumented(folder: Path) -> dict[str, dict[str, set[str]]]:
  """`differences` of the files of a finished run, by file; {} when there are none."""
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  record = (folder / 'predictions' / f'{lines[0]["sites"][0]}.jsonl').read_text().splitlines()[0]
  header, _, _ = (folder / 'ledger.csv').read_text().partition('\n')
  summary = json.loads((folder / 'summary.json').read_text())
  # These are null in most runs, and the key alone is then all there is.
  nullable = summary.keys() & {'zero_shot', 'global', 'partition'}
  written = {
    'metrics.jsonl': {key for line in lines for key in line},
    'summary.json': summary_keys(summary) | nullable,
    'ledger.csv': set(header.split(',')),
    'predictions/SITE.jsonl': set(json.loads(record))}
  if all('text' in tasks for tasks in summary['scores'].values()):
    # Texts have scores of another form, and nothing is read from them.
    always, _ = documented('summary.json')
    written['summary.json'] |= {
      key for key in always if '.MATCH' in key or '.per_type.' in key}
    written['predictions/SITE.jsonl'] |= {'predicted', 'gold', 'parse_failed', 'copied', 'dropped'}
  found = {heading: differences(heading, keys) for heading, keys in written.items()}
  return {heading: some for heading, some in found.items() if some}

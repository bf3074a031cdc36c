"""PHEE, drug-safety events: a JSON object a line, each with one sentence."""

import json
from collections import Counter
from pathlib import Path

from fedmedjax.data.formats.faults import Faults
from fedmedjax.data.formats.files import malformed, numbered_lines
from fedmedjax.data.formats.quotes import Draft, Quote, as_one_unit
from fedmedjax.data.formats.settle import settle
from fedmedjax.types import Document, InputError, Relation, Span


def read_phee(path: str | Path) -> tuple[list[Document], Counter]:
  """Reads one file of PHEE, a JSON object a line, each with one sentence and its events.

  A trigger's type is its event's type; an argument's is its path, as in 'Treatment.Drug'. The
  fragments of an argument are separate mentions ('paroxetine' ... 'fentanyl'), so each is a span.
  Relations go from the trigger to every other span of its event. 'Combination' only pairs up
  drugs that the event names already; arguments that have it are counted, and it is left out.

  Args:
    path: the file.

  Returns:
    The documents, and counts: documents, entities, relations, events, fragments (spans of an
    argument in several pieces), combinations, and those of `settle`.
  """
  path = Path(path)
  counts, drafts, names, faults = Counter(), [], set(), Faults()
  for number, line in numbered_lines(path):
    if line.strip():
      with faults:
        drafts.append(_phee_document((path, number), line, names, counts))
  faults.tell()
  if not drafts:
    raise InputError(f'no PHEE document in {path}')
  return settle(drafts, counts), counts


def _phee_document(place, line: str, names: set[str], counts: Counter) -> Draft:
  """The document of one line, whose name is added to `names`; adds to `counts`."""
  try:
    record = json.loads(line)
    name, text = record['id'], record['context']
    events = [event for group in record['annotations'] for event in group['events']]
    (name + text).encode()
  except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
    raise malformed(*place, 'PHEE') from error
  if name in names:
    raise InputError(f'{place[0]}:{place[1]}: document id {name!r} occurs twice')
  names.add(name)
  spans, quotes, relations = [], [], []
  for event in events:
    head, own = len(spans), _phee_event(place, event, counts)
    relations += [Relation(span.type, head, head + i) for i, (span, _) in enumerate(own) if i]
    spans += [span for span, _ in own]
    quotes += [quote for _, quote in own]
  counts.update(documents=1, entities=len(spans), relations=len(relations), events=len(events))
  document = Document(name, text, tuple(spans), tuple(relations))
  return Draft(document, tuple(quotes), as_one_unit(text))


def _phee_event(place, event, counts: Counter) -> list[tuple[Span, Quote]]:
  """The spans of one event, its trigger first; arguments have at most one level below them."""
  if not isinstance(event, dict) or not isinstance(event.get('event_type'), str):
    raise malformed(*place, 'PHEE (event)')
  trigger = _phee_spans(place, event['event_type'], event.get('Trigger'), counts)
  if len(trigger) != 1:
    raise malformed(*place, 'PHEE (event with one trigger)')
  named = []
  for role, node in event.items():
    if role != 'Trigger' and isinstance(node, dict):
      below = {f'{role}.{key}': value for key, value in node.items()}
      named += [(role, node)] + [pair for pair in below.items() if isinstance(pair[1], dict)]
      counts['combinations'] += 'Combination' in node
  return trigger + [span for role, node in named
                    for span in _phee_spans(place, role, node, counts)]


def _phee_spans(place, role: str, node, counts: Counter) -> list[tuple[Span, Quote]]:
  """The fragments of one argument: parallel lists of lists of strings and of offsets."""
  try:
    pieces = [list(zip(*mention, strict=True))
              for mention in zip(node['text'], node['start'], strict=True)]
  except (KeyError, TypeError, ValueError) as error:
    raise malformed(*place, f'PHEE ({role!r})') from error
  counts['fragments'] += sum(len(piece) for piece in pieces if len(piece) > 1)
  spans = []
  for stated, start in (fragment for piece in pieces for fragment in piece):
    if not isinstance(stated, str) or type(start) is not int:
      raise malformed(*place, f'PHEE ({role!r})')
    pieces = ((start, start + len(stated)),)
    spans.append((Span(*pieces[0], role), Quote((*place, role), pieces, stated)))
  return spans

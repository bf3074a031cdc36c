"""A token classifier's answers for a site's test examples, as prediction records."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedmedjax import tree
from fedmedjax.data.label_steps import label_batch
from fedmedjax.data.labels import allowed_labels, marked_text, spans
from fedmedjax.data.pack import round_up
from fedmedjax.data.site import SiteData, TaskData
from fedmedjax.data.tasks import judged
from fedmedjax.eval.evaluate import in_document
from fedmedjax.model import bert
from fedmedjax.types import Program

# Windows are padded to a multiple of this many tokens: one compilation each.
_WIDTH_BUCKET = 32


class Tagger(NamedTuple):
  """A token classifier and how test examples are fed to it; compiled once per width of windows."""

  model: Hashable           # what `logits` is given first, such as a `bert.BertTagger`
  labels: tuple[str, ...]   # names of the classifier's outputs
  max_length: int           # of a window, in tokens
  batch_size: int           # windows classified at once
  features: int = 0         # F of a token; 0 = a token is one number
  # (model, adapter, base, batch) -> f32[B, T, Y], -inf for labels that are not annotated
  logits: Callable = bert.label_logits
  working: Callable = bert.working_bytes   # (model, rows, width) -> bytes of what is kept at least


@cache
def _classifier(model: Hashable, logits: Callable):
  """Jitted (adapter, base, batch) -> i32[B, T], the likeliest allowed label of every token."""
  return jax.jit(lambda adapter, base, batch: jnp.argmax(
    logits(model, adapter, base, batch), axis=-1))


def tag(
  tagger: Tagger,
  adapter: dict,
  base: dict,
  part: TaskData,
  advance: Callable[[int], None] = lambda count: None,
) -> list[list[str]]:
  """Label names of the words of each test example, in the order of `part.test`.

  Args:
    tagger: see above.
    adapter, base: as `Tagger.logits` takes them.
    part: the site's task, whose `test_tokens` are classified; words get only labels that the site
      annotates.
    advance: called with the number of examples done since the last call.
  """
  windows = [(i, window) for i, example in enumerate(part.test_tokens) for window in example]
  # Like lengths together: less padding.
  order = sorted(range(len(windows)), key=lambda i: len(windows[i][1].tokens), reverse=True)
  allowed = allowed_labels(tagger.labels, part.ask.types)
  tags: list[list[str]] = [[] for _ in windows]
  for start in range(0, len(order), tagger.batch_size):
    chosen = order[start:start + tagger.batch_size]
    width = min(round_up(len(windows[chosen[0]][1].tokens), _WIDTH_BUCKET), tagger.max_length)
    batch = label_batch(
      [windows[i][1] for i in chosen], tagger.batch_size, width, allowed, tagger.features)
    best = np.asarray(_classifier(tagger.model, tagger.logits)(adapter, base, batch))
    for row, i in enumerate(chosen):
      tags[i] = [tagger.labels[label] for label in best[row, windows[i][1].places]]
    before, after = (n * len(part.test) // len(windows) for n in (start, start + len(chosen)))
    advance(after - before)
  joined: list[list[str]] = [[] for _ in part.test]
  for (example, _), names in zip(windows, tags, strict=True):
    joined[example] += names
  return joined


def largest_call(
  tagger: Tagger, base: dict, adapter: dict, sites: Sequence[SiteData]
) -> Program:
  """The widest batch that `tag` classifies for the sites' test examples, to plan its memory by.

  Args:
    tagger, base: see `tag`.
    adapter: the classifier's weights, arrays or their shapes.
    sites: at least one of them has a test example.
  """
  longest = max(
    len(window.tokens) for site in sites for part in site.tasks for example in part.test_tokens
    for window in example)
  rows, width = tagger.batch_size, min(round_up(longest, _WIDTH_BUCKET), tagger.max_length)
  batch = label_batch((), rows, width, allowed_labels(tagger.labels, ()), tagger.features)
  return Program(
    _classifier(tagger.model, tagger.logits), (adapter, base, batch),
    tree.num_bytes((adapter, batch)), tagger.working(tagger.model, rows, width))


def answer_calls(
  tagger: Tagger, base: dict, adapter: dict, site: SiteData
) -> list[tuple[Program, int]]:
  """(call, how often) of all calls that answer a site's test examples; none is made.

  Args:
    tagger, base, site: see `answer`.
    adapter: the classifier's weights, arrays or their shapes.
  """
  lengths = sorted((
    len(window.tokens) for part in site.tasks for example in part.test_tokens
    for window in example), reverse=True)
  widths = Counter(
    min(round_up(longest, _WIDTH_BUCKET), tagger.max_length)
    for longest in lengths[::tagger.batch_size])
  return [
    (Program(_classifier(tagger.model, tagger.logits), (adapter, base, label_batch(
      (), tagger.batch_size, width, allowed_labels(tagger.labels, ()), tagger.features)), 0, 0),
     times) for width, times in widths.items()]


def answer(
  tagger: Tagger, base: dict, adapter: dict, site: SiteData, advance: Callable[[int], None]
) -> list[dict]:
  """One record for each test example, as `predictions/SITE.jsonl` holds them.

  `generated` are the labels of the words; labels lie on the text itself, so every record counts
  as copied and readable. A record of relation extraction has `main`, the given main entity.
  Offsets are into the document.
  """
  (part,) = site.tasks
  records = []
  labelled = tag(tagger, adapter, base, part, advance)
  for example, windows, tags in zip(part.test, part.test_tokens, labelled, strict=True):
    known = judged(part.ask.asked, part.ask.types, example)
    words = [word for window in windows for word in window.words]
    place = partial(in_document, example=example)
    main = {} if example.main is None else {'main': place(example.main)}
    records.append({
      'document': example.document, 'sentence_start': example.start, 'task': part.ask.task,
      **main, 'model_input': marked_text(example), 'generated': ' '.join(tags),
      'predicted': [place(span) for span in spans(tags, words) if span.type in known],
      'gold': [place(span) for span in example.entities],
      'parse_failed': False, 'copied': True, 'dropped': 0,
    })
  return records

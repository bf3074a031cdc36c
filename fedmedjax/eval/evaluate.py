"""Decodes a site's test sentences and scores answers against its annotation."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fedmedjax.data.site import SiteData, TaskData
from fedmedjax.data.tasks import OUTPUT_HEADING, Ask
from fedmedjax.data.text_task import TEXT
from fedmedjax.eval import metrics, text_metrics
from fedmedjax.eval.generation import Generator, encoder_of, generate
from fedmedjax.eval.text_metrics import TextMetrics
from fedmedjax.types import Example, Span


def answer(
  generator: Generator, base: dict, adapter: dict, site: SiteData, advance: Callable[[int], None]
) -> list[dict]:
  """Prediction records of all test examples of a site, task by task, then those of `end_to_end`.

  Args:
    generator: see `generation.Generator`.
    base: the `params` collection.
    adapter: the `lora` collection; {} is the base model alone.
    site: whose test examples are answered.
    advance: called with the number of examples done since the last call.
  """
  records = []
  for part in site.tasks:
    records += predictions(
      part.ask, part.test, generate(generator, adapter, base, part, advance))
  for part in site.tasks:
    def write(examples, part=part):
      return generate(generator, adapter, base, asking(generator, part, examples))

    records += end_to_end(site, part, records, write)
  return records


def asking(generator: Generator, part: TaskData, examples: Sequence[Example]) -> TaskData:
  """A task about other examples than its own; their answers are not known."""
  encoder = encoder_of(generator)
  instruction = encoder.instruction(part.ask, examples)
  return part._replace(
    instruction=instruction, test=tuple(examples),
    test_tokens=tuple(encoder.encode(part.ask, instruction, examples)))


def predictions(ask: Ask, examples: Sequence[Example], outputs: Sequence[str]) -> list[dict]:
  """One record an example, as `predictions/SITE.jsonl` holds them.

  Offsets of `predicted`, `gold` and `main` are into the document; `model_input` follows the
  instruction. `main`, the main entity [start, end, type], is there in relation extraction only.
  In the task 'text' an answer is not read: `target` stands in the place of what reading finds.

  Args:
    ask: the task at the site, which renders prompts and parses outputs.
    examples: the examples that were asked about.
    outputs: the generated text for each.
  """
  records = []
  for example, output in zip(examples, outputs, strict=True):
    record = {
      'document': example.document, 'sentence_start': example.start, 'task': ask.task,
      'model_input': ask.render(example)[0], 'generated': output}
    found = {'target': example.target} if ask.task == TEXT else _read(
      ask, example, output)
    main = {} if example.main is None else {'main': in_document(example.main, example)}
    ending = {} if ask.after == OUTPUT_HEADING else {'output_heading': ask.after}
    records.append(record | found | main | ending)
  return records


def _read(ask: Ask, example: Example, output: str) -> dict:
  """The keys of a record that say what an answer found, and what there was to find."""
  parsed = ask.parse(output, example)
  return {
    'predicted': [in_document(span, example) for span in parsed.spans],
    'gold': [in_document(span, example) for span in example.entities],
    'parse_failed': parsed.failed, 'copied': parsed.copied, 'dropped': parsed.dropped}


def in_document(span: Span, example: Example) -> list:
  """[start, end, type] of a span of the example's text, with offsets into its document."""
  return [span.start + example.start, span.end + example.start, span.type]


END_TO_END = 'end_to_end'  # the `task` of the records below


def end_to_end(
  site: SiteData, part: TaskData, records: Sequence[dict],
  write: Callable[[list[Example]], Sequence[str]],
) -> list[dict]:
  """One record for every main entity that the model itself predicted: its modifiers.

  Where a predicted main entity is a true one, its question was asked already and its answer is
  taken over. There is no record for a site that lacks the task which finds main entities: its notes
  do not tell right ones from wrong ones.

  Args:
    site: whose sentences were asked about.
    part: the task that asks about main entities.
    records: prediction records of all tasks of the site.
    write: (examples) -> the model's output for each.
  """
  def key(record, main):
    return record['document'], record['sentence_start'], *main

  known = {key(r, r['main']): r for r in records if r['task'] == part.ask.task and 'main' in r}
  texts = _texts(site)
  questions: dict[tuple, Example | dict] = {}  # an example to be asked, or its record
  for record in records:
    if record['task'] != part.ask.given:
      continue
    place = record['document'], record['sentence_start']
    for main in record['predicted']:
      if main[2] in part.ask.asked:
        start, end, kind = main
        questions[key(record, main)] = known.get(key(record, main)) or Example(
          *place, texts[place], (), Span(start - place[1], end - place[1], kind))
  fresh = [example for example in questions.values() if isinstance(example, Example)]
  answers = iter(predictions(part.ask, fresh, write(fresh)) if fresh else ())
  return [
    (next(answers) if isinstance(question, Example) else question) | {'task': END_TO_END}
    for question in questions.values()]


def _texts(site: SiteData) -> dict[tuple[str, int], str]:
  """{(document, start): text} of the site's test sentences."""
  return {(example.document, example.start): example.text for example in site.test}


def asked(site: SiteData, records: Sequence[dict]) -> bool:
  """Whether these are the records of one adapter that answered all test examples of a site.

  Those of the task 'text' are none once their answers were taken out: only these can be scored.
  """
  return sum(
    record['task'] != END_TO_END and (record['task'] != TEXT or 'generated' in record)
    for record in records) == len(site.test)


# File in the folder of the predictions: the counts that scores add up from, by source.
COUNTS = 'counts.json'


class SiteScores(NamedTuple):
  """A site's scores in the form of summary.json, and the counts that they add up from."""

  # {'ner': ..., 're': {'modifier': ..., 'triple': ..., ...}}, or {'text': {metric: ...}}
  scores: dict
  sources: tuple[str, ...]       # N tested sources: articles, trials, patients or just notes
  # 'ner', 're.modifier', ...: i64[N, 2, T + 1, 3]; 'text.exact_match', ...: of floats
  counts: dict[str, np.ndarray]
  asked: int                     # answers that were read, of the task 'text' none
  copied: int                    # of them, those that copy their sentence
  unreadable: int                # of them, those that had to be repaired
  dropped: int                   # entities written that stand nowhere in their sentence
  # The scores of those sentences that were answered before training, too; None = of all of them.
  few: 'SiteScores | None' = None

  @property
  def copy_rate(self) -> float | None:
    return self.copied / self.asked if self.asked else None

  @property
  def parse_failure_rate(self) -> float | None:
    return self.unreadable / self.asked if self.asked else None


def score(
  site: SiteData, answers: Sequence[Sequence[dict]], seed: int, samples: int,
  text: TextMetrics = text_metrics.USUAL,
) -> SiteScores:
  """Scores the answers for a site; intervals resample its sources.

  A task that asks about main entities has three scores: `modifier`, of the spans, the true main
  entity given, one question after the other; `triple`, of (main entity, modifier) pairs, each once,
  typed by both; `end_to_end`, the same with the main entities that the model found itself, where
  the site has the task that finds them. The task 'text' has those of `text_metrics.score`.

  Args:
    site: whose sentences and tasks were asked about.
    answers: the records (`answer`) of each adapter that answered; counts add up over adapters.
    seed, samples: of the bootstrap.
    text: what the texts of the task 'text' are judged by.
  """
  texts, scores, counts = _texts(site), {}, {}
  source_of = {example.document: example.source or example.document for example in site.test}

  def summed(name: str, types: Sequence[str], counted) -> dict:
    """Scores of `counted`, (note, counts) of texts or questions; all sources count, in order."""
    by_source = {
      source: np.zeros((2, len(types) + 1, 3), np.int64) for source in source_of.values()}
    for note, more in counted:
      by_source[source_of[note]] += more
    counts[name] = np.stack(list(by_source.values()))
    interval = metrics.bootstrap_f1(counts[name], seed, samples)
    return metrics.scores(counts[name].sum(axis=0), types, interval)

  for part in site.tasks:
    task, types, pairs = part.ask.task, part.ask.types, _pairs(part.ask)
    if task == TEXT:
      scores[task], more = text_metrics.score(text, site.name, part.test, answers, seed, samples)
      counts |= more
      continue
    spans = summed(f'{task}.modifier' if pairs else task, types, (
      pair for records in answers for pair in _span_counts(records, task, types, texts)))
    if not pairs:
      scores[task] = spans
      continue
    scores[task] = {'modifier': spans}
    sources = {'triple': task}
    if any(other.ask.task == part.ask.given for other in site.tasks):
      sources[END_TO_END] = END_TO_END
    for name, source in sources.items():
      scores[task][name] = summed(f'{task}.{name}', pairs, (
        pair for records in answers
        for pair in _link_counts(records, task, source, pairs, texts)))
  records = [
    record for adapter_records in answers for record in _asked_once(adapter_records)
    if record['task'] != TEXT]
  return SiteScores(
    scores, tuple(dict.fromkeys(source_of.values())), counts,
    len(records), *(sum(record[key] for record in records)
                    for key in ('copied', 'parse_failed', 'dropped')))


def headline(scores: dict) -> float:
  """A site's score that comes first: strict typed F1 of entities, else of modifiers; of texts, the
  first metric."""
  if TEXT in scores:
    first, *_ = scores[TEXT].values()
    return first['value']
  entry = scores['ner'] if 'ner' in scores else scores['re']['modifier']
  return entry['strict']['typed']['f1']


def _asked_once(records: Sequence[dict]) -> list[dict]:
  """The records without those that `end_to_end` took over: the same answer once more."""
  def about(record: dict) -> tuple | None:
    return 'main' in record and (
      record['document'], record['sentence_start'], *record['main'])

  given = {about(record) for record in records if record['task'] != END_TO_END}
  return [
    record for record in records if record['task'] != END_TO_END or about(record) not in given]


def source_counts(scores: dict[str, SiteScores]) -> dict[str, dict]:
  """The content of the file COUNTS for these sites: enough to compare runs source by source."""
  return {name: {'sources': site.sources, **site.counts} for name, site in scores.items()}


def answer_counts(scores: dict[str, SiteScores]) -> dict[str, dict[str, int]]:
  """{site: how many answers were asked for, copied, unreadable}, as summary.json holds them."""
  return {name: {key: getattr(site, key) for key in ('asked', 'copied', 'unreadable')}
          for name, site in scores.items()}


def rates(scores: Iterable[SiteScores]) -> dict[str, float | None]:
  """Shares of summary.json about the answers as such: means over sites, and the number dropped.

  The means are None where no answer was read.
  """
  scores = list(scores)

  def mean(key: str) -> float | None:
    known = [getattr(site, key) for site in scores if site.asked]
    return np.mean(known) if known else None

  return {
    'copy_rate': mean('copy_rate'), 'parse_failure_rate': mean('parse_failure_rate'),
    'dropped': sum(site.dropped for site in scores)}


def _pairs(ask: Ask) -> tuple[str, ...]:
  """The types of a triple, 'drug.route', ...; () for a task without main entities."""
  return tuple(f'{main}.{kind}' for main, kinds in ask.asked.items() if main for kind in kinds)


def _span_counts(records, task: str, types: Sequence[str], texts) -> Iterator[tuple]:
  """Yields (note, counts i64[2, T + 1, 3]) of each record of a task."""
  for record in records:
    if record['task'] == task:
      start = record['sentence_start']
      gold, predicted = (
        [_in_sentence(span, start) for span in record[key]] for key in ('gold', 'predicted'))
      yield record['document'], metrics.count(
        gold, predicted, texts[record['document'], start], types)


def _link_counts(records, task: str, source: str, pairs, texts) -> Iterator[tuple]:
  """Yields (note, counts) of each sentence's triples: gold of `task`, predictions of `source`.

  Triples of other types than `pairs` are none, as in annotations of new notes.
  """
  links = {place: ({}, {}) for place in texts}
  for record in records:
    place = record['document'], record['sentence_start']
    for side, (key, origin) in enumerate((('gold', task), ('predicted', source))):
      for span in record[key] if record['task'] == origin else ():
        main, kind = record['main'], f'{record["main"][2]}.{span[2]}'
        if kind in pairs:
          link = metrics.Link(
            _in_sentence(main, place[1]), _in_sentence(span, place[1]), kind)
          links[place][side][link] = None
  for (note, start), (gold, predicted) in links.items():
    yield note, metrics.count_links(gold, predicted, texts[note, start], pairs)


def _in_sentence(span: Sequence, start: int) -> Span:
  """A record's [start, end, type], with offsets into the sentence that begins at `start`."""
  return Span(span[0] - start, span[1] - start, span[2])

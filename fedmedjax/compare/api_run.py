"""Runs a baseline behind an OpenAI-compatible endpoint: the same sentences, parser and scores.

In the paper the model is GPT-4o (docs/methods.md), here any model, named by the regime
`api:MODEL` of compare. Nothing is trained or sent between sites. The test sentences go to the
endpoint, each after `config.api.shots` training sentences of its site with their solutions, or
after those that models are shown that are trained (`config.data.shots`).
"""

import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ml_collections import ConfigDict

from fedmedjax import report
from fedmedjax.data.chat import chat_of
from fedmedjax.eval import api, evaluate
from fedmedjax.eval.answers import Answer, append_answer, read_answers
from fedmedjax.eval.endpoint import Endpoint
from fedmedjax.eval.evaluate import SiteScores
from fedmedjax.eval.generation import most_new_tokens
from fedmedjax.eval.prompt import Prompt, instructions, make_prompt, messages, shown_examples
from fedmedjax.experiment.config import leaves
from fedmedjax.experiment.methods import Own
from fedmedjax.experiment.notes import data_seed
from fedmedjax.experiment.own_parts import METRIC, own_parts
from fedmedjax.experiment.stored import quoted_sentences
from fedmedjax.experiment.text_scores import text_metrics
from fedmedjax.experiment.types import Data
from fedmedjax.report.description import used
from fedmedjax.report.terminal import show
from fedmedjax.report.warnings import warnings
from fedmedjax.runtime.cli import versions
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store import files, trackers, words
from fedmedjax.train.fingerprint import (
  check_inputs,
  compare_inputs,
  may_mend,
  own_checksums,
  schema_checksum,
  write_own_parts,
  write_schema,
)
from fedmedjax.types import Example, InputError

# Groups of keys that an answer or a score depends on; then the keys in them that change neither.
_USED = ('seed', 'data', 'eval', 'api')
HARMLESS = ('api.concurrency', 'api.max_attempts', 'api.timeout', 'api.cache')


def folder_name(model: str) -> str:
  """The name of the folder of a model's run, different for each model ('/' becomes '%2F').

  Raises:
    InputError: the name is too long for a folder.
  """
  name = 'api_' + quote(model, safe='')
  if len(name) > 200:
    raise InputError(f'--regimes=api:{model[:40]}...: {len(model)} characters are too many for a '
                     'model name; 60 always fit')
  return name


def settings(config: ConfigDict) -> dict[str, Any]:
  """The part of a configuration that a run of an endpoint depends on, flat, as JSON values."""
  # Whether there is a turn for the system is the base model's to say.
  more = {'model.path'} if config.data.chat else set()
  return files.plain({
    key: value for key, value in leaves(config.to_dict()).items()
    if key.split('.')[0] in _USED or key in more})


def plan(config: ConfigDict, data: Data) -> dict[str, dict[str, Prompt]]:
  """{site: {task: prompt}}; raises InputError when a site has too few sentences to show."""
  return {
    site.name: {
      part.ask.task: make_prompt(site, part, data.sites, config.api.shots, data_seed(config))
      for part in site.tasks if part.test}
    for site in (*data.tested, *data.external)}


def run_api(
  config: ConfigDict, workdir: Path, reporter: Reporter, data: Data, endpoint: Endpoint
) -> dict:
  """Asks for every test sentence, or resumes -> summary (see `_summary`).

  A finished run is only shown again, unless questions were left without an answer: then these
  are asked again.

  Raises:
    InputError: bad configuration or workdir, or an endpoint that refuses the key or the model.
    RuntimeError: the endpoint fails; what it answered is kept.
  """
  started, values = time.monotonic(), leaves(config.to_dict())
  finished = files.check_workdir(workdir, settings(config), HARMLESS)
  own = own_parts({METRIC: config.eval.metric})
  inputs = schema_checksum(data.schema) | own_checksums(own)
  mendable = may_mend(workdir, values)
  compare_inputs(workdir, inputs, only=inputs, mendable=mendable)
  if not config.store.text:
    words.take_out(workdir)
  if finished and not finished['api']['failed']:
    reporter.say(f'{workdir}: finished, nothing to do')
    show(finished, reporter, workdir)
    report.freshen(workdir, quoted_sentences(config))
    return finished
  trackers.check_installed(config.log.trackers)
  judged_by = text_metrics(values, own, (*data.tested, *data.external))
  plans = plan(config, data)
  cache = _cache(config.api.cache, workdir, endpoint.model)
  files.claim(workdir, settings(config))
  (workdir / report.FILE).unlink(missing_ok=True)
  system = chat_of(data.base.tokenizer).system if config.data.chat else None
  _keep(workdir, data, own, inputs, mendable)
  _write_what_is_asked(workdir, data, plans, system, config.store.text)
  limits = api.Limits(config.api.concurrency, config.api.max_attempts, config.api.timeout)
  answers: list[Answer] = []

  def ask(asked: Sequence[tuple[Prompt, Example]]) -> list[str]:
    questions = _questions(asked, config, data, system)
    with reporter.live(), reporter.task(f'asking {endpoint.model}', len(questions)) as advance:
      fresh = api.ask(
        endpoint, questions, limits, read_answers(cache),
        lambda key, answer: append_answer(cache, key, answer), advance, reporter.say)
    answers.extend(fresh)
    # Endpoints add blanks around an answer, which are no part of a copied sentence.
    return [(answer.text or '').strip() for answer in fresh]

  texts = iter(ask([
    (prompt, example) for prompts in plans.values() for prompt in prompts.values()
    for example in prompt.part.test]))
  scores = {}
  for site in (*data.tested, *data.external):
    prompts, records = plans[site.name], []
    for prompt in prompts.values():
      test = prompt.part.test
      records += evaluate.predictions(prompt.part.ask, test, list(islice(texts, len(test))))
    for prompt in prompts.values():
      records += evaluate.end_to_end(
        site, prompt.part, records,
        lambda examples, prompt=prompt: ask([(prompt, example) for example in examples]))
    files.write_lines(
      workdir / 'predictions' / f'{site.name}.jsonl', words.kept(records, config.store.text))
    scores[site.name] = evaluate.score(
      site, [records], config.seed, config.eval.bootstrap_samples, judged_by)
  files.write_json(workdir / 'predictions' / evaluate.COUNTS, files.plain({
    'scores': evaluate.source_counts(scores)}))
  summary = _summary(config, data, endpoint.model, scores) | {
    'api': costs(endpoint.model, config, answers), 'wall_seconds': time.monotonic() - started,
    'versions': versions()}
  summary['warnings'] = warnings(summary, [], workdir / 'predictions')
  _track(config, workdir, summary, reporter)
  files.write_json(workdir / 'summary.json', summary)
  show(summary, reporter, workdir)
  report.freshen(workdir, quoted_sentences(config))
  return summary


def _track(config: ConfigDict, workdir: Path, summary: dict, reporter: Reporter) -> None:
  """Shows the scores; there are no rounds."""
  with trackers.started(
      config.log.trackers, workdir, settings(config), (), reporter.warn) as tracker:
    tracker.finish([], summary)


def check_cache(config: ConfigDict, study: Path, workdir: Path, model: str) -> None:
  """Raises InputError where answers would lie in a study's folder although no text is kept there.

  Args:
    config: of the regime.
    study: the folder of the comparison.
    workdir: the regime's, in it.
    model: of the endpoint.
  """
  if config.store.text:
    return
  folder, held = config.api.cache, workdir / words.ANSWERS
  if not folder or Path(folder).resolve().is_relative_to(study.resolve()):
    raise InputError(
      f'config.api.cache={folder!r}: with config.store.text=False a folder outside of {study} is '
      f'needed for the answers of api:{model}, which hold words of notes')
  if held.exists():
    raise InputError(
      f'{held}: holds words of notes; with config.store.text=False move it to '
      f'{Path(folder) / folder_name(model)}.jsonl, or delete it')


def _keep(
  workdir: Path, data: Data, own: Own, inputs: dict[str, dict[str, str]], mendable: bool
) -> None:
  """Writes the study's own schema, words and metric, and their checksums, if there are any."""
  if inputs:
    check_inputs(workdir, inputs, mendable)
  write_own_parts(workdir, own)
  write_schema(workdir, data.schema)


def _write_what_is_asked(
  workdir: Path, data: Data, plans: dict[str, dict[str, Prompt]], system: bool | None, text: bool
) -> None:
  """The sites, and, where text is kept, the prompts."""
  files.write_json(workdir / report.SITES, used(
    data.sites, data.tested, data.external, data.server, data.schema))
  if text:
    # The messages of the first question of each site and task, to be read by people.
    files.write_json(workdir / words.PROMPTS, {
      site: {task: messages(prompt, prompt.part.test[0], system)
             for task, prompt in prompts.items()}
      for site, prompts in plans.items()})


def _cache(folder: str, workdir: Path, model: str) -> Path:
  """The file of a model's answers; raises InputError when its folder cannot be made."""
  path = Path(folder) / f'{folder_name(model)}.jsonl' if folder else workdir / words.ANSWERS
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(
      f'config.api.cache={folder!r}: not a folder that can be written: {error.strerror}') from None
  return path


def _questions(
  asked: Sequence[tuple[Prompt, Example]], config: ConfigDict, data: Data, system: bool | None
) -> list[api.Question]:
  """The questions; an answer may be as long as the base model's own, in tokens of its tokenizer."""
  inputs = [prompt.part.ask.render(example)[0] for prompt, example in asked]
  lengths = [len(tokens) for tokens in data.base.tokenizer(
    inputs, add_special_tokens=False)['input_ids']]
  return [
    api.Question(messages(*pair, system), most_new_tokens(length, config.eval.max_new_ratio))
    for pair, length in zip(asked, lengths, strict=True)]


def costs(model: str, config: ConfigDict, answers: Sequence[Answer]) -> dict:
  """The key `api` of summary.json: what the answers cost, in tokens and, with prices, in money.

  `cached` answers cost nothing in this run; `cached_input_tokens` and `cached_output_tokens` are
  what they cost when they were first asked. A count is None when the endpoint did not report it for
  every answer.
  """
  def tokens(kind: str, paid: bool) -> int | None:
    counts = [getattr(answer, kind) for answer in answers if bool(answer.requests) == paid]
    return None if None in counts else sum(counts)

  read, written = tokens('input_tokens', True), tokens('output_tokens', True)
  prices = config.api.price_input, config.api.price_output
  known = any(prices) and None not in (read, written)
  return {
    'model': model, 'shots': config.api.shots or config.data.shots,
    'requests': sum(answer.requests for answer in answers),
    'answers': len(answers), 'cached': sum(not answer.requests for answer in answers),
    'input_tokens': read, 'output_tokens': written,
    'cached_input_tokens': tokens('input_tokens', False),
    'cached_output_tokens': tokens('output_tokens', False),
    'usd': (prices[0] * read + prices[1] * written) / 1e6 if known else None,
    'failed': sum(answer.text is None for answer in answers),
    'failure': next((answer.reason for answer in answers if answer.text is None), ''),
  }


def _summary(
  config: ConfigDict, data: Data, model: str, scores: dict[str, SiteScores]
) -> dict:
  """The keys that the summary.json of every regime has, without those of time and cost."""
  sites = (*data.tested, *data.external)
  # They are words of notes.
  shown = shown_examples(sites) if config.store.text else {}
  return files.plain({
    'preset': f'api:{model}', 'seed': config.seed, 'rounds': 0,
    'sites': [site.name for site in data.tested],
    'external': [site.name for site in data.external],
    'train_examples': [len(site.train) for site in data.sites],
    'scores': {site: entry.scores for site, entry in scores.items()},
    'test_sources': [len(entry.sources) for entry in scores.values()],
    'bytes_up': 0, 'bytes_down': 0, 'bytes_full_model': 0, 'local_steps': 0,
    **evaluate.rates(scores.values()), 'answers': evaluate.answer_counts(scores),
    'site_weights': [], 'zero_shot': None, 'instructions': instructions(sites),
    **({words.SHOTS: shown} if shown else {}),
  })

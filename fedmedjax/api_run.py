"""Runs a baseline behind an OpenAI-compatible endpoint: the same sentences, parser and scores.

GPT-4o in the paper (METHOD section 4), here any model: regime `api:MODEL` of compare. Nothing is
trained or sent between sites; the notes' test sentences go to the endpoint, with
`config.api.shots` training sentences of the site in front.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from ml_collections import ConfigDict

from fedmedjax import writer
from fedmedjax.config import leaves
from fedmedjax.data import tasks
from fedmedjax.eval import api, evaluate
from fedmedjax.eval.answers import Answer, append_answer, read_answers
from fedmedjax.eval.endpoint import Endpoint
from fedmedjax.eval.evaluate import SiteScores, most_new_tokens
from fedmedjax.eval.prompt import Prompt, messages, ner_prompt, re_prompt
from fedmedjax.experiment import Data
from fedmedjax.progress import Reporter
from fedmedjax.report import show
from fedmedjax.types import InputError

PROMPTS = {'ner': ner_prompt, 're': re_prompt}
# Groups of keys that an answer or a score depends on, and keys that change neither.
_USED = ('seed', 'data', 'eval', 'api')
HARMLESS = ('api.concurrency', 'api.max_attempts', 'api.timeout', 'api.cache')


def folder_name(model: str) -> str:
  """A folder for a model's run: one name, one folder ('/' becomes '%2F')."""
  name = 'api_' + quote(model, safe='')
  if len(name) > 200:
    raise InputError(f'--regimes=api:{model[:40]}...: {len(model)} characters are too many for a '
                     'model name; 60 always fit')
  return name


def settings(config: ConfigDict) -> dict[str, Any]:
  """The part of a configuration that such a run depends on, flat, in JSON's terms."""
  return writer.plain({
    key: value for key, value in leaves(config.to_dict()).items() if key.split('.')[0] in _USED})


def plan(config: ConfigDict, data: Data) -> dict[str, dict[str, Prompt]]:
  """{site: {task: prompt}}; raises InputError when a site has too few sentences to show."""
  plans = {}
  for site in (*data.tested, *data.external):
    prompts = {
      task: PROMPTS[task](site, data.sites, config.api.shots, config.seed)
      for task in config.api.tasks}
    plans[site.name] = {task: prompt for task, prompt in prompts.items() if prompt}
  silent = set(config.api.tasks) - {task for prompts in plans.values() for task in prompts}
  if silent:
    raise InputError(
      f'config.api.tasks={config.api.tasks!r}: the notes of no site hold modifiers to test '
      f"{silent.pop()!r} on; ('ner',) is allowed")
  return plans


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
  started = time.monotonic()
  finished = writer.check_workdir(workdir, settings(config), HARMLESS)
  if finished and not finished['api']['failed']:
    reporter.say(f'{workdir}: finished, nothing to do')
    show(finished, reporter)
    return finished
  plans = plan(config, data)
  cache = _cache(config.api.cache, workdir, endpoint.model)
  writer.claim(workdir, settings(config))
  # What was said, by the first question of each site and task.
  writer.write_json(workdir / 'prompts.json', {
    site: {task: messages(prompt, prompt.test[0]) for task, prompt in prompts.items()}
    for site, prompts in plans.items()})
  asked = [prompt for prompts in plans.values() for prompt in prompts.values()]
  questions = [q for prompt in asked for q in _questions(prompt, config, data)]
  limits = api.Limits(config.api.concurrency, config.api.max_attempts, config.api.timeout)
  with reporter.live(), reporter.task(f'asking {endpoint.model}', len(questions)) as advance:
    answers = api.ask(
      endpoint, questions, limits, read_answers(cache),
      lambda key, answer: append_answer(cache, key, answer), advance,
      reporter.say)
  scores, rest = {}, answers
  for site, prompts in plans.items():
    records, scores[site] = [], {}
    for task, prompt in prompts.items():
      mine, rest = rest[:len(prompt.test)], rest[len(prompt.test):]
      # Blanks around an answer are the endpoint's way of talking, not part of a copied sentence.
      found = evaluate.predictions(
        prompt.test, prompt.types, [(answer.text or '').strip() for answer in mine])
      records += found
      scores[site][task] = evaluate.score(
        prompt.test, prompt.types, found, config.seed, config.eval.bootstrap_samples)
    writer.write_lines(workdir / 'predictions' / f'{site}.jsonl', records)
  summary = _summary(config, data, endpoint.model, plans, scores) | {
    'api': costs(endpoint.model, config, answers), 'wall_seconds': time.monotonic() - started}
  writer.write_json(workdir / 'summary.json', summary)
  show(summary, reporter)
  return summary


def _cache(folder: str, workdir: Path, model: str) -> Path:
  """The file of a model's answers; raises InputError when its folder cannot be made."""
  path = Path(folder) / f'{folder_name(model)}.jsonl' if folder else workdir / 'answers.jsonl'
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise InputError(
      f'config.api.cache={folder!r}: not a folder that can be written: {error.strerror}') from None
  return path


def _questions(prompt: Prompt, config: ConfigDict, data: Data) -> list[api.Question]:
  """Bounded like the base model's own answers, in tokens of the base model's tokenizer."""
  inputs = [tasks.render(example)[0] for example in prompt.test]
  lengths = [len(tokens) for tokens in data.base.tokenizer(
    inputs, add_special_tokens=False)['input_ids']]
  return [
    api.Question(messages(prompt, example), most_new_tokens(length, config.eval.max_new_ratio))
    for example, length in zip(prompt.test, lengths, strict=True)]


def costs(model: str, config: ConfigDict, answers: Sequence[Answer]) -> dict:
  """What the answers cost: `cached` ones nothing now, the others tokens and, with prices, money.

  `cached_input_tokens` and `cached_output_tokens` are what those in the cache took when they were
  asked. A count is None when the endpoint did not give it for every answer.
  """
  def tokens(kind: str, paid: bool) -> int | None:
    counts = [getattr(answer, kind) for answer in answers if bool(answer.requests) == paid]
    return None if None in counts else sum(counts)

  read, written = tokens('input_tokens', True), tokens('output_tokens', True)
  prices = config.api.price_input, config.api.price_output
  known = any(prices) and None not in (read, written)
  return {
    'model': model, 'shots': config.api.shots,
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
  config: ConfigDict, data: Data, model: str, plans: dict[str, dict[str, Prompt]],
  scores: dict[str, dict[str, SiteScores]],
) -> dict:
  """The keys that every regime's summary.json has, but those of time and cost."""
  every = [entry for tasks in scores.values() for entry in tasks.values()]
  return writer.plain({
    'preset': f'api:{model}', 'seed': config.seed, 'rounds': 0,
    'sites': [site.name for site in data.tested],
    'external': [site.name for site in data.external],
    'train_examples': [len(site.train) for site in data.sites],
    'scores': {
      site: {
        key: value for task, entry in tasks.items()
        for key, value in evaluate.by_task(task, entry.scores).items()}
      for site, tasks in scores.items()},
    'bytes_up': 0, 'bytes_down': 0, 'bytes_full_model': 0, 'local_steps': 0,
    'copy_rate': np.mean([entry.copy_rate for entry in every]),
    'parse_failure_rate': np.mean([entry.parse_failure_rate for entry in every]),
    'site_weights': [], 'zero_shot': None,
    'instructions': {site: prompts['ner'].instruction for site, prompts in plans.items()},
  })

"""Questions to any OpenAI-compatible endpoint: chat completions, greedy, with retries.

The text of an endpoint's errors is not repeated, since some quote the key; only its status and its
short error code are.

Every attempt ends in a `Reply`. Another attempt is made after status 408, 409, 429 and 5xx, a lost
connection, silence, and answers that cannot be read; after the last one the question counts as
failed, and the others are asked all the same. An error that no further attempt can mend (a refused
key, an unknown model, no credit left) ends the run at once, and so do many failures in a row.
"""

import asyncio
import hashlib
import json
import logging
import math
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from fedmedjax.eval.answers import Answer
from fedmedjax.eval.endpoint import Endpoint
from fedmedjax.types import InputError

# Seconds before the second attempt; they double with every further attempt, up to the longest.
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0
# An endpoint that asks to wait longer than this (seconds) is asked again in another run.
_PATIENCE = 300.0
# The run gives up after this many questions that failed one after the other.
_MOST_FAILURES = 10
# HTTP statuses after which another attempt is made, besides 5xx.
_AGAIN = (408, 409, 429)
# Parameters that reasoning models refuse, and the ones that are sent instead; '' = none.
_INSTEAD = {'max_tokens': 'max_completion_tokens', 'temperature': ''}
_CODE = re.compile(r'[\w.-]{1,40}')


class Limits(NamedTuple):
  """Limits of the questions to an endpoint."""

  concurrency: int   # questions asked at the same time
  max_attempts: int  # for one question
  timeout: float  # seconds of one attempt


class Question(NamedTuple):
  """One question to a chat model."""

  messages: Sequence[Mapping[str, str]]  # the dialogue, as chat completions take it
  max_tokens: int                        # of the answer


class Reply(NamedTuple):
  """The result of one attempt. Tokens are None where it was billed but not counted."""

  text: str | None = None
  reason: str = ''      # why there is no text
  again: bool = False   # whether another attempt may bring a text
  wait: float = 0.0     # seconds that the endpoint asks to wait before that attempt
  input_tokens: int | None = 0
  output_tokens: int | None = 0


def ask(
  endpoint: Endpoint,
  questions: Sequence[Question],
  limits: Limits,
  known: Mapping[str, Answer],
  keep: Callable[[str, Answer], None],
  advance: Callable[[int, str], None] = lambda count, note: None,
  say: Callable[[str], None] = lambda line: None,
) -> list[Answer]:
  """Answers in the order of the questions; a question that occurs twice is asked once.

  Args:
    endpoint, questions, limits: see above.
    known: answers by `digest`; these questions are not asked.
    keep: called with the digest and each readable answer as soon as it is there.
    advance: called with the number of questions done since the last call, and why the last failed.
    say: called with a line for each parameter that the endpoint refused, which `digest` does not
      know of.

  Raises:
    InputError: the endpoint refuses the key or does not know the model.
    RuntimeError: no credit, a wait of more than _PATIENCE seconds, _MOST_FAILURES in a row, or
      no answer at all.
  """
  keys = [digest(endpoint.model, question) for question in questions]
  todo = {key: q for key, q in zip(keys, questions, strict=True) if key not in known}
  advance(len(keys) - len(todo), '')
  fresh = asyncio.run(_ask_all(endpoint, todo, limits, keep, advance, say)) if todo else {}
  by_key = {key: known[key] for key in keys if key in known} | fresh
  answers = []
  for key in keys:
    answers.append(by_key[key])
    # Asked once, paid once: with its first occurrence.
    by_key[key] = by_key[key]._replace(requests=0, input_tokens=0, output_tokens=0)
  if answers and all(answer.text is None for answer in answers):
    raise _silent(endpoint, len(answers), answers[-1])
  return answers


def digest(model: str, question: Question) -> str:
  """A question's key in the cache: everything that the answer depends on."""
  return hashlib.sha256(json.dumps(_body(model, question), sort_keys=True).encode()).hexdigest()


def _body(model: str, question: Question) -> dict[str, Any]:
  """The parameters of the request for a question."""
  return {
    'model': model, 'messages': [dict(turn) for turn in question.messages], 'temperature': 0.0,
    'max_tokens': question.max_tokens}


async def _ask_all(
  endpoint: Endpoint, todo: Mapping[str, Question], limits: Limits, keep, advance, say
) -> dict[str, Answer]:
  """Asks every question of `todo`, `concurrency` at once -> {key: answer}; see `ask`."""
  import openai

  # At INFO the transport prints addresses, at DEBUG more than that.
  for name in ('openai', 'httpx', 'httpcore', 'httpx2', 'httpcore2'):
    logging.getLogger(name).setLevel(logging.WARNING)
  answers, in_a_row, waiting = {}, 0, iter(todo.items())
  refused: set[str] = set()

  async def work(connection) -> None:
    nonlocal in_a_row
    for key, question in waiting:  # shared by all tasks: each question is taken once
      answers[key] = answer = await _answer(connection, endpoint, question, limits, refused)
      in_a_row = in_a_row + 1 if answer.text is None else 0
      if answer.text is not None:
        keep(key, answer)
      advance(1, answer.reason)
      if in_a_row == _MOST_FAILURES:
        raise _silent(endpoint, in_a_row, answer)

  try:
    # One timeout, around each attempt as a whole; one place that decides about attempts.
    async with openai.AsyncOpenAI(
      base_url=endpoint.url, api_key=endpoint.key, max_retries=0, timeout=None,
      # Notes go to the address that was named and to no other.
      http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, timeout=None),
    ) as connection:
      async with asyncio.TaskGroup() as group:
        for _ in range(min(limits.concurrency, len(todo))):
          group.create_task(work(connection))
  except ExceptionGroup as group:
    # Alone: the cause holds the request, and with it the key.
    first, *_ = group.exceptions
    raise first from None
  for name in sorted(refused):
    say(f'the endpoint of {endpoint.model!r} refuses {name}; asked '
        + (f'with {_INSTEAD[name]}' if _INSTEAD[name] else 'without'))
  return answers


def _silent(endpoint: Endpoint, count: int, last: Answer) -> RuntimeError:
  """The error for `count` questions in a row without an answer."""
  return RuntimeError(
    f'the endpoint of {endpoint.model!r} left {count} questions in a row without a readable '
    f'answer, the last for: {last.reason}; answers so far are kept')


async def _answer(
  connection, endpoint: Endpoint, question: Question, limits: Limits, refused: set[str]
) -> Answer:
  """Asks one question until an attempt brings a text; tokens add up over the billed attempts."""
  replies: list[Reply] = []
  while True:
    reply = await _attempt(connection, endpoint, question, limits.timeout, refused)
    replies.append(reply)
    if not reply.again or len(replies) == limits.max_attempts:
      break
    if reply.wait > _PATIENCE:
      raise RuntimeError(
        f'the endpoint of {endpoint.model!r} asks to wait {reply.wait:.0f} s ({reply.reason}); '
        'answers so far are kept, the same command goes on later')
    backoff = min(_FIRST_WAIT * 2 ** (len(replies) - 1), _LONGEST_WAIT)
    # Jitter: attempts that failed together must not be repeated together.
    await asyncio.sleep(max(reply.wait, backoff * random.uniform(0.5, 1.0)))
  return Answer(
    reply.text, _total([r.input_tokens for r in replies]),
    _total([r.output_tokens for r in replies]), len(replies), reply.reason)


def _total(counts: Sequence[int | None]) -> int | None:
  """The sum of the counts, or None where one of them is not known."""
  return None if None in counts else sum(counts)


async def _attempt(
  connection, endpoint: Endpoint, question: Question, timeout: float, refused: set[str]
) -> Reply:
  """Sends one request; raises InputError or RuntimeError for errors that no further one can mend.

  `refused` collects the parameters of _INSTEAD that the endpoint does not take.
  """
  import openai

  sent = {
    _INSTEAD[name] if name in refused else name: value
    for name, value in _body(endpoint.model, question).items()}
  sent.pop('', None)
  try:
    async with asyncio.timeout(timeout):
      response = await connection.chat.completions.with_raw_response.create(**sent)
      return read_reply(response.http_response.content)
  except openai.APIStatusError as error:
    # As text: an endpoint may put anything there.
    name = str(error.param)
    if error.status_code == 400 and name in set(_INSTEAD) & set(sent):
      refused.add(name)
      return Reply(reason=f'HTTP 400 ({name})', again=True)
    return _refusal(
      endpoint, error.status_code, str(error.code), str(error.param), error.response.headers)
  except (TimeoutError, openai.APITimeoutError):
    return Reply(reason=f'no answer within {timeout:g} s', again=True)
  except openai.OpenAIError:
    return Reply(reason='no connection, or a broken one', again=True)


def read_reply(content: bytes) -> Reply:
  """The answer and the token counts in the body of a successful response; anything may be in it."""
  try:
    body = json.loads(content)
  except (ValueError, RecursionError):
    body = None
  usage = _field(body, 'usage')
  tokens = {ours: _field(usage, theirs) for ours, theirs in (
    ('input_tokens', 'prompt_tokens'), ('output_tokens', 'completion_tokens'))}
  tokens = {name: n if type(n) is int and n >= 0 else None for name, n in tokens.items()}
  choice = _field(_field(body, 'choices'), 0)
  text = _field(_field(choice, 'message'), 'content')
  if not isinstance(text, str) or not text.strip():
    if _field(choice, 'finish_reason') == 'length':
      # A model that reasons first: the same question would end the same way, and be billed again.
      return Reply(
        reason='no text within max_tokens; raise config.eval.max_new_ratio', **tokens)
    return Reply(reason='an answer without text, or none that can be read', again=True, **tokens)
  # A lone surrogate is legal in JSON, and in no file.
  return Reply(text.encode(errors='replace').decode(), **tokens)


def _field(value: Any, key: str | int) -> Any:
  """value[key], or None where there is no such entry."""
  try:
    return value[key]
  except (LookupError, TypeError):
    return None


def _refusal(
  endpoint: Endpoint, status: int, code: str, parameter: str, headers: Mapping[str, str]
) -> Reply:
  """The reply that a response with an error status stands for, or the error that ends the run."""
  names = [
    name for name in (code, parameter)
    if name != 'None' and _CODE.fullmatch(name) and endpoint.key not in name]
  reason = f'HTTP {status}' + (f' ({" ".join(names)})' if names else '')
  if status == 401:
    raise InputError(f'OPENAI_API_KEY: the endpoint does not accept this key ({reason})')
  if status == 403:
    raise InputError(f'OPENAI_API_KEY: this key may not use model {endpoint.model!r} ({reason})')
  if status == 404:
    raise InputError(
      f'the endpoint has no model {endpoint.model!r} or no chat completions ({reason}); check '
      'the name and OPENAI_BASE_URL')
  if code == 'insufficient_quota':
    raise RuntimeError(
      f'the endpoint of {endpoint.model!r} has no credit left for this key ({reason}); answers '
      'so far are kept')
  return Reply(
    reason=reason, again=status in _AGAIN or status >= 500,
    wait=seconds_to_wait(headers.get('retry-after', '')))


def seconds_to_wait(retry_after: str) -> float:
  """Seconds from now in a header Retry-After, which holds seconds or a date; 0 if it is neither.

  RFC 9110 section 10.2.3.
  """
  try:
    seconds = float(retry_after)
  except ValueError:
    try:
      seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, OverflowError):
      return 0.0
  return 0.0 if math.isnan(seconds) else max(seconds, 0.0)

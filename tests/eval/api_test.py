"""Endpoints that answer, and all the ways in which they do not."""

import asyncio
import email.utils
import hashlib
import json
import sys
import time

import pytest
from fake_endpoint import body, completion, drop, error, hang, serving

from fedmedjax.eval import api
from fedmedjax.eval.answers import Answer, append_answer, read_answers
from fedmedjax.eval.api import Limits, Question
from fedmedjax.eval.endpoint import Endpoint, endpoint_from
from fedmedjax.types import InputError

KEY = 'sk-canary-5f2c8e'


@pytest.fixture(scope='module', autouse=True)
def first_request():
  """The library imports most of itself at its first request, for longer than others may take."""
  with serving() as fake:
    api.ask(Endpoint('m', fake.url, KEY), questions(1), Limits(1, 1, 60.0), {}, lambda *_: None)


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setattr(api, '_FIRST_WAIT', 0.01)
  monkeypatch.setattr(api, '_LONGEST_WAIT', 0.02)
  with serving() as fake:
    yield fake


def questions(count):
  return [Question(({'role': 'user', 'content': f'question {i}'},), 7) for i in range(count)]


def ask(
  server, asked, known=None, keep=lambda key, answer: None, attempts=3, concurrency=2, **more
):
  return api.ask(
    Endpoint('m', server.url, KEY), asked, Limits(concurrency, attempts, 0.4), known or {}, keep,
    **more)


def test_what_is_sent(server):
  """Greedy, bounded, with the key in the header, and nothing else."""
  (answer,) = ask(server, questions(1))
  assert server.bodies == [{
    'path': '/v1/chat/completions', 'model': 'm', 'temperature': 0.0, 'max_tokens': 7,
    'messages': [{'role': 'user', 'content': 'question 0'}]}]
  assert server.keys == {f'Bearer {KEY}'}
  assert answer == Answer('fine', 100, 10, requests=1)


def test_one_question_outlives_every_fault(server):
  """Twelve faults, then an answer; tokens of billed attempts add up: 2 * 100 + 100 read."""
  server.script = [
    error(429, Retry_After='0.3'), error(500), hang, drop, error(503), error(408),
    body(completion(None)), body(completion('  \n')), error(409), drop, error(502), error(504)]
  started = time.monotonic()
  (answer,) = ask(server, questions(1), attempts=13)
  assert answer == Answer('fine', 300, 30, requests=13)
  # 0.3 s as asked by the endpoint, and 0.4 s until its silence was taken for one.
  assert time.monotonic() - started > 0.7


@pytest.mark.parametrize('content', [
  b'', b'<html>Bad gateway</html>', b'{"choices": []}', b'null', b'[]', b'{"choices": [null]}',
  b'{"choices": {"0": {}}}', b'{"choices": [{"message": {"content": 3}}]}', b'\xff\xfe', b'{',
  b'[' * 100_000])
def test_garbage_is_asked_again(server, content):
  server.script = [body(content), body(content, 'text/html')]
  (answer,) = ask(server, questions(1))
  # Nobody knows what the unreadable ones cost.
  assert answer == Answer('fine', None, None, requests=3)


def test_missing_token_counts_are_unknown_not_zero(server):
  server.script = [body(completion('fine', {'prompt_tokens': True}))]
  first, second = ask(server, questions(2), concurrency=1)
  assert first == Answer('fine', None, None, requests=1)
  assert second == Answer('fine', 100, 10, requests=1)


def test_refused_parameters_are_replaced_once_for_all(server):
  """As reasoning models do; the key of the cache stays."""
  server.script = [
    error(400, code='unsupported_parameter', param='max_tokens'),
    error(400, code='unsupported_value', param='temperature')]
  said, kept = [], {}
  answers = ask(server, questions(2), keep=kept.__setitem__, concurrency=1, say=said.append)
  assert [answer.requests for answer in answers] == [3, 1]
  assert [set(body) - {'path', 'model', 'messages'} for body in server.bodies] == [
    {'max_tokens', 'temperature'}, {'max_completion_tokens', 'temperature'},
    {'max_completion_tokens'}, {'max_completion_tokens'}]
  assert server.bodies[3]['max_completion_tokens'] == 7
  assert said == ["the endpoint of 'm' refuses max_tokens; asked with max_completion_tokens",
                  "the endpoint of 'm' refuses temperature; asked without"]
  assert set(kept) == {api.digest('m', question) for question in questions(2)}
  # Refused again under its new name: that question fails.
  server.script = [error(400, param='max_tokens'), error(400, param='max_tokens')]
  first, _ = ask(server, questions(2), concurrency=1)
  assert first.reason == 'HTTP 400 (max_tokens)'


def test_an_answer_that_no_file_could_hold(server):
  server.script = [body(completion('\ud800 fever').replace(b'\\\\', b'\\'))]
  assert ask(server, questions(1))[0].text == '? fever'


def test_a_hopeless_question_fails_alone(server):
  server.answer = lambda turns: None if 'question 2' in turns[-1]['content'] else 'fine'
  kept = {}
  answers = ask(server, questions(5), keep=kept.__setitem__)
  assert [answer.text for answer in answers] == ['fine', 'fine', None, 'fine', 'fine']
  assert (answers[2].requests, answers[2].input_tokens) == (3, 300)
  assert 'without text' in answers[2].reason and len(kept) == 4
  # A client's fault is not mended by asking again.
  server.answer = lambda turns: 'fine'
  server.script = [error(400, code='context_length_exceeded')]
  before = len(server.bodies)
  first, _ = ask(server, questions(2), concurrency=1)
  assert first.text is None and first.reason == 'HTTP 400 (context_length_exceeded)'
  assert len(server.bodies) == before + 2


def test_known_answers_and_doubles_are_not_asked(server):
  kept = {}
  asked = [*questions(3), *questions(3)]
  answers = ask(server, asked, keep=kept.__setitem__)
  assert len(server.bodies) == 3 and [a.requests for a in answers] == [1, 1, 1, 0, 0, 0]
  assert [(a.input_tokens, a.output_tokens) for a in answers] == [(100, 10)] * 3 + [(0, 0)] * 3
  done = []
  again = ask(server, asked, known=kept, advance=lambda count, note: done.append((count, note)))
  assert sum(count for count, _ in done) == 6
  new = ask(server, [*asked, *questions(4)[3:]], known=kept,
            advance=lambda count, note: done.append((count, note)))
  assert done == [(6, ''), (6, ''), (1, '')] and new[-1].requests == 1
  del server.bodies[3:]
  assert len(server.bodies) == 3 and [a.text for a in again] == ['fine'] * 6
  # Another bound is another question; so is another model.
  longer = questions(1)[0]._replace(max_tokens=8)
  digests = {api.digest(model, q) for model in 'mn' for q in (longer, questions(1)[0])}
  assert len(digests) == 4 and set(kept) == {api.digest('m', q) for q in questions(3)}


def test_a_dead_endpoint_is_given_up_and_answers_are_kept(server):
  kept = {}
  server.script = [body(completion('fine'))] * 3 + [error(500)] * 60
  with pytest.raises(RuntimeError, match='left 10 questions in a row .* for: HTTP 500;') as caught:
    ask(server, questions(40), keep=kept.__setitem__, attempts=1)
  assert len(kept) == 3 and len(server.bodies) <= 15
  assert '\n' not in str(caught.value) and caught.value.__cause__ is None
  server.script = [error(500), error(400, code='policy')]
  with pytest.raises(RuntimeError, match='left 2 questions in a row .* for: HTTP 400 .policy.;'):
    ask(server, questions(2), attempts=1, concurrency=1)


@pytest.mark.parametrize('fault, kind, message', [
  (error(401, code='invalid_api_key'), InputError, r'OPENAI_API_KEY.*\(HTTP 401 \(invalid_api_key'),
  (error(401, f'wrong: {KEY}', code=KEY), InputError, r'accept this key \(HTTP 401\)'),
  (error(403, KEY), InputError, "may not use model 'm'"),
  (error(404, KEY), InputError, "has no model 'm' or no chat completions"),
  (error(429, KEY, code='insufficient_quota'), RuntimeError, 'no credit left'),
  (error(429, KEY, Retry_After='3600'), RuntimeError, 'asks to wait 3600 s .HTTP 429'),
])
def test_what_waiting_cannot_mend_ends_the_run_at_once(server, fault, kind, message):
  server.script = [fault] * 20
  with pytest.raises(kind, match=message) as caught:
    ask(server, questions(8))
  assert len(server.bodies) <= 2
  text = str(caught.value)
  assert '\n' not in text and KEY not in text and str(server.server_port) not in text
  assert caught.value.__suppress_context__


def test_no_server_at_all(server):
  server.shutdown()
  server.server_close()
  with pytest.raises(RuntimeError, match='no connection, or a broken one') as caught:
    ask(server, questions(2))
  assert str(server.server_port) not in str(caught.value)


def test_the_waits_between_attempts(monkeypatch):
  """1, 2, 4, ... seconds up to 60, of which half is sure to pass; or as long as is asked, where it
  is longer, up to 300 seconds."""
  replies, slept, asked = [], [], []

  async def attempt(*_):
    return replies.pop(0)

  async def sleep(seconds):
    slept.append(seconds)

  monkeypatch.setattr(api, '_attempt', attempt)
  monkeypatch.setattr(api.asyncio, 'sleep', sleep)
  monkeypatch.setattr(api.random, 'uniform', lambda *limits: asked.append(limits) or 0.75)

  def answered(*given, attempts=20):
    replies[:], slept[:] = given, []
    return asyncio.run(api._answer(
      None, Endpoint('m', '', KEY), questions(1)[0], Limits(1, attempts, 1.0), set()))

  again = api.Reply(again=True, input_tokens=2, output_tokens=3)
  found = answered(*[again] * 9, api.Reply('fine', input_tokens=1, output_tokens=1))
  assert found == Answer('fine', 19, 28, 10)
  assert slept == [0.75 * seconds for seconds in (1, 2, 4, 8, 16, 32, 60, 60, 60)]
  assert set(asked) == {(0.5, 1.0)}
  assert answered(again, again, again, attempts=2).requests == 2 and slept == [0.75]
  assert answered(again._replace(wait=300.0), api.Reply('fine')).text and slept == [300]
  with pytest.raises(RuntimeError, match='asks to wait 300 s'):
    answered(again._replace(wait=300.4))


def test_only_failures_in_a_row_end_a_run(server):
  """Nine, an answer, and nine more do not."""
  failing = [error(500)] * 9
  server.script = [*failing, body(completion('fine')), *failing, body(completion('fine'))]
  answers = ask(server, questions(20), attempts=1, concurrency=1)
  assert [answer.text for answer in answers] == [*[None] * 9, 'fine'] * 2


@pytest.mark.parametrize('finish, again', [
  ('stop', True), ('content_filter', True), ('length', False), (None, True)])
def test_a_reply_read_by_hand(finish, again):
  """The first choice counts; so do tokens that are a number from 0 on."""
  def read(text, *counts):
    return api.read_reply(json.dumps({
      'choices': [{'finish_reason': finish, 'message': {'content': text}},
                  {'finish_reason': 'other', 'message': {'content': 'second'}}],
      'usage': dict(zip(('prompt_tokens', 'completion_tokens'), counts, strict=True))}).encode())

  silent = read(' ', 5, 6)
  assert (silent.text, silent.again, silent.wait) == (None, again, 0)
  assert (silent.input_tokens, silent.output_tokens) == (5, 6) and silent.reason
  for counts, known in (((0, 7), (0, 7)), ((-1, 2.5), (None, None)), ((True, '3'), (None, None))):
    assert read('fine', *counts) == api.Reply('fine', '', False, 0.0, *known)


@pytest.mark.parametrize('status, code, reason, again', [
  (400, 'too_long', 'HTTP 400 (too_long)', False), (400, 'Long', 'HTTP 400 (Long)', False),
  (400, None, 'HTTP 400', False),
  (402, None, 'HTTP 402', False), (405, None, 'HTTP 405', False), (408, None, 'HTTP 408', True),
  (410, None, 'HTTP 410', False), (429, 'rate_limit', 'HTTP 429 (rate_limit)', True),
  (499, None, 'HTTP 499', False), (500, None, 'HTTP 500', True), (599, None, 'HTTP 599', True)])
def test_what_a_status_means(status, code, reason, again):
  reply = api._refusal(Endpoint('m', '', KEY), status, str(code), 'None', {})
  assert (reply.reason, reply.again, reply.wait, reply.text) == (reason, again, 0, None)


def test_only_a_bad_request_refuses_a_parameter(server):
  server.script = [error(422, param='max_tokens')]
  answer, _ = ask(server, questions(2), attempts=3, concurrency=1)
  assert (answer.reason, answer.requests) == ('HTTP 422 (max_tokens)', 1)


def test_as_many_at_once_as_allowed(server):
  server.delay = 0.05
  ask(server, questions(12), concurrency=3)
  assert server.most_at_once == 3


@pytest.mark.parametrize('value, seconds', [
  ('', 0), ('soon', 0), ('nan', 0), ('-3', 0), ('2.5', 2.5), ('inf', float('inf')),
  # By a name, since both processes of the suite must name a test alike.
  pytest.param(email.utils.formatdate(time.time() - 60, usegmt=True), 0, id='a minute ago')])
def test_retry_after(value, seconds):
  assert api.seconds_to_wait(value) == seconds
  later = email.utils.formatdate(time.time() + 60, usegmt=True)
  assert 50 < api.seconds_to_wait(later) <= 60


def test_the_cache_survives_a_torn_line(tmp_path):
  """And the next line does not run into it."""
  path = tmp_path / 'answers.jsonl'
  assert read_answers(path) == {}
  append_answer(path, 'a', Answer('äöü\u2028', 5, None))
  whole = path.read_bytes()
  append_answer(path, 'b', Answer('lost', 5, 6))
  path.write_bytes(path.read_bytes()[:-9])
  append_answer(path, 'c', Answer('third', 7, 8))
  assert read_answers(path) == {'a': Answer('äöü\u2028', 5, None), 'c': Answer('third', 7, 8)}
  path.write_bytes(whole + b'\xff\n[1]\n{"key": "d"}\n')
  append_answer(path, 'e', Answer('', 1, 1))
  assert set(read_answers(path)) == {'a', 'e'}


SOUND = {
  'OPENAI_BASE_URL': 'http://localhost:1/v1', 'OPENAI_API_KEY': KEY, 'OPENAI_MODEL': 'small'}


@pytest.mark.parametrize('change, message', [
  ({'OPENAI_BASE_URL': ''}, 'OPENAI_BASE_URL is missing or empty'),
  ({'OPENAI_API_KEY': ' \n'}, 'OPENAI_API_KEY is missing or empty'),
  ({'OPENAI_MODEL': ''}, 'OPENAI_MODEL is missing or empty'),
  ({'OPENAI_BASE_URL': f'localhost/{KEY}'}, 'OPENAI_BASE_URL: an address'),
  ({'OPENAI_BASE_URL': f'http://[{KEY}'}, 'OPENAI_BASE_URL: an address'),
  ({'OPENAI_BASE_URL': f'http://host:{KEY}/v1'}, 'OPENAI_BASE_URL: an address'),
  ({'OPENAI_API_KEY': f'{KEY}\nx'}, 'OPENAI_API_KEY: printable ASCII'),
  ({'OPENAI_API_KEY': f'{KEY}é'}, 'OPENAI_API_KEY: printable ASCII'),
])
def test_the_environment_names_the_endpoint(change, message):
  with pytest.raises(InputError, match=message) as caught:
    endpoint_from(SOUND | change)
  assert KEY not in str(caught.value) and '\n' not in str(caught.value)
  found = endpoint_from({name: f' {value}\n' for name, value in SOUND.items()})
  assert found == Endpoint('small', 'http://localhost:1/v1', KEY)
  assert endpoint_from(SOUND, 'large').model == 'large'
  assert KEY not in f'{found} {found!r}' and 'localhost' not in repr(found)


def test_the_package_is_asked_for_by_name(monkeypatch):
  monkeypatch.setitem(sys.modules, 'openai', None)
  with pytest.raises(InputError, match="'api:small' needs the package openai; pip install openai"):
    endpoint_from(SOUND)


def test_digest_is_fixed():
  """The cache's key must not change by itself: it would be paid for."""
  payload = {'model': 'm', 'messages': [{'role': 'user', 'content': 'q'}], 'temperature': 0.0,
             'max_tokens': 7}
  expected = hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()
  assert api.digest('m', Question(({'content': 'q', 'role': 'user'},), 7)) == expected

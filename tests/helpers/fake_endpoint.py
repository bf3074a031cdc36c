"""An OpenAI-compatible server on loopback that misbehaves as told."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text: str | None, usage: dict | None = None) -> bytes:
  """The body of a chat completion; 100 tokens read and 10 written unless told otherwise."""
  usage = {'prompt_tokens': 100, 'completion_tokens': 10} if usage is None else usage
  return json.dumps({
    'id': 'x', 'object': 'chat.completion', 'created': 0, 'model': 'm', 'usage': usage,
    'choices': [{'index': 0, 'finish_reason': 'stop',
                 'message': {'role': 'assistant', 'content': text}}]}).encode()


def send(handler, body: bytes, status: int = 200, kind: str = 'application/json', **headers):
  handler.send_response(status)
  for name, value in ({'Content-Type': kind, 'Content-Length': len(body)} | headers).items():
    handler.send_header(name.replace('_', '-'), str(value))
  handler.end_headers()
  handler.wfile.write(body)


def error(
  status: int, message: str = 'no', code: str | None = None, param: str | None = None, **headers
) -> Callable:
  body = json.dumps({'error': {'message': message, 'code': code, 'param': param}}).encode()
  return lambda handler: send(handler, body, status, **headers)


def body(content: bytes, kind: str = 'application/json') -> Callable:
  return lambda handler: send(handler, content, kind=kind)


def hang(handler) -> None:
  handler.server.released.wait(10)


def drop(handler) -> None:
  handler.close_connection = True


class FakeEndpoint(ThreadingHTTPServer):
  """Serves `script`'s behaviours first, one a request, then `answer(messages)`."""

  daemon_threads = True

  def __init__(self):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.script: list[Callable] = []
    self.answer: Callable[[list], str | None] = lambda messages: 'fine'
    self.bodies: list[dict] = []
    self.keys: set[str] = set()
    self.delay, self.at_once, self.most_at_once = 0.0, 0, 0
    self.lock, self.released = threading.Lock(), threading.Event()

  @property
  def url(self) -> str:
    return f'http://127.0.0.1:{self.server_port}/v1'

  def handle_error(self, request, client_address) -> None:
    """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def do_POST(self):
    server = self.server
    asked = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
    with server.lock:
      server.bodies.append(asked | {'path': self.path})
      server.keys.add(self.headers['Authorization'])
      server.at_once += 1
      server.most_at_once = max(server.most_at_once, server.at_once)
      behave = server.script.pop(0) if server.script else None
    try:
      time.sleep(server.delay)
      if behave:
        behave(self)
      else:
        send(self, completion(server.answer(asked['messages'])))
    finally:
      with server.lock:
        server.at_once -= 1

  def log_message(self, *args) -> None:
    pass


@contextmanager
def serving():
  server = FakeEndpoint()
  thread = threading.Thread(target=server.serve_forever, args=(0.02,))
  thread.start()
  try:
    yield server
  finally:
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()

"""Answers of paid endpoints on disk: one JSON line each, so that no question is paid twice."""

import json
import os
from pathlib import Path
from typing import NamedTuple


class Answer(NamedTuple):
  """The answer to one question. Tokens are the endpoint's count over all attempts it billed."""

  text: str | None           # None: no readable answer
  input_tokens: int | None   # None: the endpoint did not say
  output_tokens: int | None
  requests: int = 0          # attempts that were sent for it; 0 = the answer was on disk already
  reason: str = ''           # why there is no text


def read_answers(path: Path) -> dict[str, Answer]:
  """{key: answer} of a cache file, {} if there is none; torn and foreign lines are left out."""
  answers = {}
  # Bytes: a line torn inside a character must not spoil the others.
  for line in path.read_bytes().split(b'\n') if path.exists() else ():
    try:
      entry = json.loads(line)
      answers[entry['key']] = Answer(
        str(entry['text']), entry['input_tokens'], entry['output_tokens'])
    except (ValueError, LookupError, TypeError):
      continue
  return answers


def append_answer(path: Path, key: str, answer: Answer) -> None:
  """Adds one line in a single write, which several processes may do, and waits for the disk.

  A line that an earlier, interrupted write left torn is closed first.
  """
  line = json.dumps({
    'key': key, 'text': answer.text, 'input_tokens': answer.input_tokens,
    'output_tokens': answer.output_tokens}) + '\n'
  with path.open('a+b', buffering=0) as file:
    size = file.seek(0, os.SEEK_END)
    if size:
      file.seek(size - 1)
      if file.read(1) != b'\n':
        line = '\n' + line
    file.write(line.encode())
    os.fsync(file.fileno())

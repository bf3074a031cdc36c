"""Answers of reasoning models: what they thought before it is no part of an answer.

They write '<think> ... </think>' and then their answer. Some chat templates write the opening tag
themselves, so that an output has the closing one only.
"""

import re

_TAG = re.compile(r'<(/?)\s*think(?:ing)?\s*>', re.IGNORECASE)


def answer_of(generated: str) -> str:
  """What follows the last '</think>', without white space around it; all of it where there is none.

  A thought that was not brought to its end, by a limit of tokens, has no answer after it: the
  output counts up to its '<think>' only.
  """
  tags = list(_TAG.finditer(generated))
  if not tags:
    return generated
  start = max((tag.end() for tag in tags if tag[1]), default=0)
  end = min((tag.start() for tag in tags if tag.start() >= start), default=len(generated))
  return generated[start:end].strip()

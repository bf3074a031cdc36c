"""Answers of reasoning models: what they thought before it is no part of an answer.

They write '<think> ... </think>' and then their answer. Some chat templates write the opening tag
themselves, so that an output has the closing one only. Other models have other tags.
"""

import re

_THOUGHT = r'(?:seed:)?(?:think(?:ing)?|thought|reasoning|scratchpad)'
# Behind these an answer begins; `assistantfinal` is what is left of channels where a server takes
# the tags out.
_BEGINS = '|'.join((
  rf'<\\?/\s*{_THOUGHT}\s*>', r'<\s*answer\s*>', r'\[/(?-i:THINK)\]', r'<unused95>',
  r'<\|(?:/think|END_THINKING|START_RESPONSE|end_of_thought|begin_of_solution)\|>',
  r'<\|channel\|>\s*final\b[^<]{0,40}(?:<\|constrain\|>[^<]{0,40})?<\|message\|>',
  'assistantfinal'))
# In front of these it ends.
_ENDS = '|'.join((
  rf'<\s*{_THOUGHT}\s*>', r'</\s*answer\s*>', r'\[(?-i:THINK)\]', r'<unused94>',
  r'<\|(?:think|START_THINKING|END_RESPONSE|begin_of_thought|end_of_solution)\|>',
  r'<\|channel\|>\s*(?:analysis|commentary)\b', r'<\|(?:end|return|im_end|eot_id)\|>'))
_TAG = re.compile(rf'(?P<begins>{_BEGINS})|{_ENDS}', re.IGNORECASE)
# Characters for the first one of a tag that stands in a sentence.
_LOOK_ALIKES = {'<': '\u2039', '[': '\u2045'}


def answer_of(generated: str) -> str:
  """What follows the last '</think>', without white space around it; all of it where there is none.

  A thought that was not brought to its end, by a limit of tokens, has no answer after it: the
  output counts up to its '<think>' only.
  """
  tags = list(_TAG.finditer(generated))
  if not tags:
    return generated
  start = max((tag.end() for tag in tags if tag['begins']), default=0)
  end = min((tag.start() for tag in tags if tag.start() >= start), default=len(generated))
  return generated[start:end].strip()


def guarded(text: str) -> str:
  """A sentence in which tags such as '<think>' begin with a look-alike; as many characters."""
  return _TAG.sub(lambda tag: _LOOK_ALIKES.get(tag[0][0], tag[0][0]) + tag[0][1:], text)

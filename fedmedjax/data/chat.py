"""Questions and answers as a dialogue, in the words of a model's own chat template.

The instruction is what the system says where the template has a turn for it, and else the head of
the user's turn; the sentence is the user's, the answer the assistant's. An example has the tokens
that `apply_chat_template` gives the whole dialogue. What a decoder is fed are those of the template
up to where an answer begins, and an answer ends where the template ends it.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jinja2
import numpy as np

from fedmedjax.data.tasks import Ask
from fedmedjax.data.tokenize import Encoder, TokenExample, plain_encoder
from fedmedjax.types import Example, InputError

# Templates that tell a model the date would give other tokens every day: this is the one that
# Llama's fall back to. Models that may think before they answer are told not to.
_DATE = '26 Jul 2024'
_GIVEN = {'date_string': _DATE, 'enable_thinking': False}
_TODAY = f'{{% macro strftime_now(form) %}}{_DATE}{{% endmacro %}}'
# What stands for the system's, the user's and the assistant's words where a template is tried.
_SYSTEM, _USER, _ANSWER = 'sssss', 'uuuuu', 'aaaaa'


class Chat(NamedTuple):
  """A chat template that was tried."""

  tokenizer: Any
  system: bool  # whether it has a turn for the system
  gap: int      # characters between what asks for an answer and the answer
  end: int      # the token that ends an answer


def turns(
  ask: Ask, questions: Sequence[str], answers: Sequence[str], system: bool
) -> list[dict[str, str]]:
  """A dialogue in the terms of chat completions: each question and, as far as given, its answer.

  The shots of the task are its first questions and answers.

  Args:
    ask: the task.
    questions: what follows its instruction, see `Ask.render`.
    answers: of the first questions, or of all.
    system: whether the instruction is the system's; else the first question begins with it.
  """
  head, heading = ask.instruction.removesuffix(ask.heading).strip(), ask.heading
  if not head or not ask.instruction.endswith(heading):  # words of one's own may be a single line
    head, heading = ask.instruction.strip(), ''
  questions = [*(text for text, _ in ask.shots), *questions]
  answers = [*(target for _, target in ask.shots), *answers]
  # Rows of a study's own task may have no instruction at all.
  said = [{'role': 'system', 'content': head}] if system and head else []
  for number, question in enumerate(questions):
    # Many templates remove blanks around what is said.
    content = f'{heading}{question}'.strip()
    first = head and not (number or system)
    said.append({'role': 'user', 'content': f'{head}\n{content}' if first else content})
    said += [{'role': 'assistant', 'content': answer.strip()}
             for answer in answers[number:number + 1]]
  return said


def chat_of(tokenizer: Any) -> Chat:
  """Tries the chat template of a tokenizer on a short dialogue.

  Raises:
    InputError: it has none, or one that fails, does not begin an answer where it asks for one, or
      does not end an answer with a token of its own.
  """
  if not tokenizer.chat_template:
    raise InputError(
      'config.data.chat=True: the tokenizer of the model has no chat template; use False, or a '
      'model that was tuned on dialogues')

  def tried(*said: dict[str, str]) -> tuple[str, str]:
    answered = [*said, {'role': 'assistant', 'content': _ANSWER}]
    return _rendered(tokenizer, said, True), _rendered(tokenizer, answered, False)

  user = {'role': 'user', 'content': _USER}
  try:
    before, whole = tried({'role': 'system', 'content': _SYSTEM}, user)
    system = _SYSTEM in before
  except InputError:
    system = False
  if not system:
    before, whole = tried(user)
  rest = whole.removeprefix(before)
  answer = rest.lstrip()
  if _USER not in before or not whole.startswith(before) or not answer.startswith(_ANSWER):
    raise InputError(
      'config.data.chat=True: the chat template of the model asks for an answer otherwise than it '
      'writes one; use False')
  after = tokenizer(answer.removeprefix(_ANSWER), add_special_tokens=False)['input_ids']
  if not after or after[0] not in tokenizer.added_tokens_decoder:
    raise InputError(
      'config.data.chat=True: the chat template of the model ends an answer with '
      f'{answer.removeprefix(_ANSWER)!r}, which is no token that stands for an end; use False')
  return Chat(tokenizer, system, len(rest) - len(answer), after[0])


def _rendered(tokenizer: Any, said: Sequence[dict[str, str]], asks: bool) -> str:
  """The text of a dialogue; `asks` = up to where the next answer begins."""
  try:
    return tokenizer.apply_chat_template(
      list(said), chat_template=_TODAY + tokenizer.get_chat_template(), tokenize=False,
      add_generation_prompt=asks, **_GIVEN)
  except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    raise InputError(
      f'config.data.chat=True: the chat template of the model fails: {line}') from None


def make_encoder(tokenizer: Any, chat: bool) -> Encoder:
  """As config.data.chat says: `plain_encoder`, or dialogues, for whose errors see `chat_of`.

  Dialogues stand behind the tokens that all of a site's questions of a task begin with.
  """
  if not chat:
    return plain_encoder(tokenizer)
  template = chat_of(tokenizer)
  return Encoder(
    partial(_shared, template), partial(_behind, template),
    lambda ask, instruction: max(0, len(instruction) - len(_shared(template, ask, ()))),
    (template.end,), str.strip)


def _questions(chat: Chat, ask: Ask, examples: Sequence[Example]) -> list[list[int]]:
  """The tokens of each question, which are those that it has before any answer.

  Blanks before an answer may be joined in other tokens there than at the end of a text.
  """
  texts = [
    _rendered(chat.tokenizer, turns(ask, [ask.render(example)[0]], [_ANSWER], chat.system), False)
    for example in examples]
  found = []
  for example, text, tokens, places in zip(examples, texts, *_tokens(chat, texts), strict=True):
    length = text.rindex(_ANSWER) - chat.gap
    count = sum(end <= length for _, end in places)
    if not count or places[count - 1][1] != length:
      raise _depends(example)
    found.append(tokens[:count])
  return found


def _dialogues(chat: Chat, ask: Ask, examples: Sequence[Example]) -> list[TokenExample]:
  """The tokens of whole dialogues, and how many of them stand before the answer."""
  texts = [
    _rendered(chat.tokenizer, turns(ask, [question], [answer], chat.system), False)
    for question, answer in map(ask.render, examples)]
  found = []
  for example, asked, tokens in zip(
      examples, _questions(chat, ask, examples), _tokens(chat, texts)[0], strict=True):
    if tokens[:len(asked)] != asked:
      raise _depends(example)
    found.append(TokenExample(np.asarray(tokens, np.int32), len(asked)))
  return found


def _depends(example: Example) -> InputError:
  return InputError(
    f'config.data.chat=True: note {example.document!r}, character {example.start}: the tokens of '
    'the question depend on its answer by the chat template of the model; use False')


def _tokens(chat: Chat, texts: list[str]) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
  """The tokens of some texts, and the characters of each token."""
  if not texts:
    return [], []
  read = chat.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
  return read['input_ids'], read['offset_mapping']


def _shared(chat: Chat, ask: Ask, examples: Iterable[Example]) -> np.ndarray:
  """The tokens i32[P + 1] that the questions about all of `examples` begin with."""
  # Without an example: those that any has.
  examples = list(examples) or [Example('', 0, _USER, ()), Example('', 0, _ANSWER, ())]
  first, *others = map(np.asarray, _questions(chat, ask, examples))
  length = len(first)
  for other in others:
    least = min(length, len(other))
    unlike = np.flatnonzero(first[:least] != other[:least])
    length = int(unlike[0]) if len(unlike) else least
  if not length:
    raise InputError(
      f'config.data.chat=True: questions of task {ask.task!r} have not even their first token in '
      'common by the chat template of the model; use False')
  return first[:length].astype(np.int32)


def _behind(
  chat: Chat, ask: Ask, instruction: np.ndarray, examples: Sequence[Example]
) -> list[TokenExample]:
  """The dialogues from the instruction's last token on; all begin with `instruction`."""
  cut = len(instruction) - 1
  return [
    TokenExample(one.tokens[cut:], one.prompt_length - cut)
    for one in _dialogues(chat, ask, examples)]

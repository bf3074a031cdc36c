"""Examples to token sequences. An example's tokens do not depend on what it is packed with."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.data.tasks import Ask
from fedmedjax.types import Example


class TokenExample(NamedTuple):
  """The tokens of one example: the instruction's last token, input, target and end token."""

  tokens: np.ndarray  # i32[T]
  prompt_length: int  # tokens before the target's first: those that a decoder is fed


class Encoder(NamedTuple):
  """How the examples of a task become tokens behind an instruction that they share."""

  # (task, examples) -> i32[P + 1], the instruction: its last token begins every example
  instruction: Callable[[Ask, Iterable[Example]], np.ndarray]
  # (task, instruction, examples) -> their tokens
  encode: Callable[[Ask, np.ndarray, Sequence[Example]], list[TokenExample]]
  # (task, instruction) -> how many of its last tokens are of the question, as all begin alike
  within: Callable[[Ask, np.ndarray], int]
  ends: tuple[int, ...]        # tokens that end an answer
  read: Callable[[str], str]   # the text of an answer -> the answer


def plain_encoder(tokenizer: Any) -> Encoder:
  """Instruction, shots, input and target one after the other, without turns."""
  def encode(ask: Ask, instruction: np.ndarray, examples: Sequence[Example]) -> list[TokenExample]:
    return encode_examples(tokenizer, instruction, ask.render, examples)

  return Encoder(
    lambda ask, examples: encode_instruction(
      tokenizer, ask.instruction, ask.shots, ask.heading), encode,
    lambda ask, instruction: 0, (tokenizer.eos_token_id,), str)


def encode_instruction(
  tokenizer: Any, instruction: str, shots: Sequence[tuple[str, str]] = (), heading: str = ''
) -> np.ndarray:
  """Tokens i32[P + 1] of the instruction, with the tokenizer's start token when it adds one.

  Of an empty one the start token alone, or the end token where the tokenizer has none. Solved
  examples have just the tokens that they would have as examples, end token included, and the
  question's heading follows each.

  Args:
    tokenizer: a transformers tokenizer.
    instruction: the text.
    shots: (input, target) of solved examples.
    heading: of a question, the last line of the instruction.
  """
  tokens = tokenizer(instruction)['input_ids'] if instruction else []
  if tokens and tokens[-1] == tokenizer.eos_token_id:
    tokens = tokens[:-1]
  if not tokens:
    start = tokenizer.bos_token_id
    tokens = [tokenizer.eos_token_id if start is None else start]
  texts = [text for shot in shots for text in (*shot, heading)]
  pieces = iter(tokenizer(texts, add_special_tokens=False)['input_ids'] if texts else ())
  for source, target, next_heading in zip(pieces, pieces, pieces, strict=True):
    tokens = [*tokens, *source, *target, tokenizer.eos_token_id, *next_heading]
  return np.asarray(tokens, np.int32)


def encode_examples(
  tokenizer: Any, instruction: np.ndarray, render: Callable[[Example], tuple[str, str]],
  examples: Sequence[Example],
) -> list[TokenExample]:
  """Tokenises input and target apart, so that training sees exactly the tokens that decoding feeds.

  Args:
    tokenizer: a transformers tokenizer.
    instruction: i32[P + 1], from `encode_instruction`.
    render: (example) -> (input, target).
    examples: any number.
  """
  if not examples:
    return []
  rendered = [render(example) for example in examples]
  inputs, targets = (
    tokenizer(list(texts), add_special_tokens=False)['input_ids']
    for texts in zip(*rendered, strict=True))
  end = [tokenizer.eos_token_id]
  return [
    TokenExample(
      np.asarray([instruction[-1], *source, *target, *end], np.int32), 1 + len(source))
    for source, target in zip(inputs, targets, strict=True)
  ]

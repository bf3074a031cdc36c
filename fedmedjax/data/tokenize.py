"""Examples to token sequences. An example's tokens do not depend on what it is packed with."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.types import Example


class TokenExample(NamedTuple):
  """The tokens of one example: the instruction's last token, input, target and end token."""

  tokens: np.ndarray  # i32[T]
  prompt_length: int  # tokens before the target's first: those that a decoder is fed


def encode_instruction(tokenizer: Any, instruction: str) -> np.ndarray:
  """Tokens i32[P + 1] of the instruction, with the tokenizer's start token when it has one."""
  tokens = tokenizer(instruction)['input_ids']
  if tokens[-1] == tokenizer.eos_token_id:
    tokens = tokens[:-1]
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

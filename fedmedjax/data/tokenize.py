"""Examples to token sequences. An example's tokens do not depend on what it is packed with."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.types import Example


class TokenExample(NamedTuple):
  """tokens i32[n]: the instruction's last token, the input, the target, the end token.

  `prompt_length` counts the tokens before the target's first: what a decoder is fed.
  """

  tokens: np.ndarray
  prompt_length: int


def encode_instruction(tokenizer: Any, instruction: str) -> np.ndarray:
  """i32[P + 1]: the instruction with the tokenizer's start token, when it has one."""
  tokens = tokenizer(instruction)['input_ids']
  if tokens[-1] == tokenizer.eos_token_id:
    tokens = tokens[:-1]
  return np.asarray(tokens, np.int32)


def encode_examples(
  tokenizer: Any, instruction: np.ndarray, render: Callable[[Example], tuple[str, str]],
  examples: Sequence[Example],
) -> list[TokenExample]:
  """Tokenises input and target apart, so that training sees exactly what decoding feeds."""
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

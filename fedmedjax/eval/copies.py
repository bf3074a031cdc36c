"""What an answer may copy, in tokens: its input, and what becomes of it beside a fixed piece."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fedmedjax.model.speculation import CUT, END, Source, source

# How tokenizers write the blank at a token's head: byte-level ones, and SentencePiece.
_BLANKS = ('Ġ', '▁')
_UNREADABLE = '\ufffd'


def piece_tokens(tokenizer: Any, pieces: Sequence[str]) -> np.ndarray:
  """Tokens of the fixed pieces of an answer, for `speculation.guess` -> i32[F].

  Each piece is tokenized twice, after a word and after a blank, and closed by END, or by CUT where
  a word follows without its blank.
  """
  out = []
  for piece in pieces:
    for before in ('a', 'a '):
      # A piece's tokens depend on the text before it.
      alone, whole = (
        tokenizer(text, add_special_tokens=False)['input_ids'] for text in (before, before + piece))
      shared = next(
        (i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), len(alone))
      out += [*whole[shared:], CUT if _opens(piece) else END]
  return np.asarray(out or [END], np.int32)


def _opens(piece: str) -> bool:
  """Whether a word follows without its blank, which stands before the piece: no closing tag."""
  return not piece.startswith('</')


def sources(
  tokenizer: Any, pieces: Sequence[str], inputs: Sequence[np.ndarray]
) -> list[Source | None]:
  """What the answer to each input i32[n] may copy, i32[S]; None = its tokens as they are."""
  opening = next(filter(_opens, pieces), None)
  closing = next((piece for piece in pieces if not _opens(piece)), None)
  if opening is None or closing is None:
    return [None] * len(inputs)
  cut = _words(tokenizer, opening, inputs)
  joined = _joined(tokenizer, closing, {token for tokens in inputs for token in tokens.tolist()})
  return [source(tokens, words, joined) for tokens, words in zip(inputs, cut, strict=True)]


def _words(
  tokenizer: Any, piece: str, inputs: Sequence[np.ndarray]
) -> list[list[tuple[int, int, list[int]]]]:
  """The words of each input that have other tokens behind a piece, for `speculation.source`.

  A word begins at a token with a blank before it and ends where the next one begins.
  """
  parts = []
  for tokens in inputs:
    starts = [place for place, token in enumerate(tokenizer.convert_ids_to_tokens(tokens.tolist()))
              if place and token.startswith(_BLANKS)]
    parts.append([
      (first, last, tuple(tokens[first:last].tolist()))
      for first, last in pairwise([*starts, len(tokens)])])
  distinct = list({word for part in parts for *_, word in part})
  other = dict(zip(distinct, _behind(tokenizer, piece, (
    _text(tokenizer, word).lstrip(' ') for word in distinct)), strict=True))
  return [
    [(first, last, other[word]) for first, last, word in part
     if other[word] and tuple(other[word]) != word] for part in parts]


def _joined(tokenizer: Any, piece: str, tokens: Iterable[int]) -> dict[int, int]:
  """{a token: the one that the piece's last token and it become}, such as '>,' of '>' and ','."""
  texts = {token: _text(tokenizer, [token]) for token in tokens}
  # Letters, digits and blanks begin a token of their own.
  texts = {token: text for token, text in texts.items()
           if text and not text[0].isalnum() and not text[0].isspace() and _UNREADABLE not in text}
  alone, *whole = tokenizer(
    ['a' + piece, *('a' + piece + text for text in texts.values())],
    add_special_tokens=False)['input_ids']
  return {
    token: both[-1] for token, both in zip(texts, whole, strict=True)
    if len(both) == len(alone) and both[:-1] == alone[:-1] and both != alone}


def _behind(tokenizer: Any, piece: str, texts: Iterable[str]) -> list[list[int]]:
  """The tokens of each text behind a piece; none where they join the piece's."""
  alone, *whole = tokenizer(
    [piece, *(piece + text for text in texts)], add_special_tokens=False)['input_ids']
  return [both[len(alone):] if both[:len(alone)] == alone else [] for both in whole]


def _text(tokenizer: Any, tokens: Sequence[int]) -> str:
  return tokenizer.decode(tokens, clean_up_tokenization_spaces=False)

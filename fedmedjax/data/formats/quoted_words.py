"""Words that an annotation quotes: compared with a text, and found in it."""

import re
import unicodedata


def spaced(words: str) -> str:
  """Words with one blank between any two."""
  return ' '.join(words.split())


def folded(words: str) -> str:
  """Words as they are compared: whatever white space, capitals and composed letters they have."""
  words = spaced(words)
  return (words if words.isascii() else unicodedata.normalize('NFKC', words)).casefold()


def occurrences(text: str, words: str) -> list[tuple[int, int]]:
  """The ranges of a text in which words stand, whatever white space is between them.

  Capital letters count unless the words stand nowhere with theirs. In a script that writes words
  apart, a part of a longer word is no occurrence.
  """
  forms = dict.fromkeys((words, *(unicodedata.normalize(form, words) for form in ('NFC', 'NFD'))))
  pattern = '|'.join(r'\s+'.join(map(re.escape, form.split())) for form in forms)
  if not words.split():
    return []
  for flags in (re.NOFLAG, re.IGNORECASE):
    found = [match.span() for match in re.finditer(pattern, text, flags)]
    found = [place for place in found if not any(_within_word(text, at) for at in place)]
    if found:
      return found
  return []


def _within_word(text: str, at: int) -> bool:
  """Whether a place is between two letters of a script with capitals, or between two figures."""
  around = text[at - 1:at + 1] if at else ''
  return len(around) == 2 and (
    around.isdigit() or all(letter.lower() != letter.upper() for letter in around))

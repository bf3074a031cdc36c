"""Words that an annotation quotes: compared with a text, and found in it."""

import re
import unicodedata

# Signs that tools write in the place of others.
_SIGNS = str.maketrans({sign: plain for plain, signs in {
  "'": '\u2018\u2019\u201b\u2032\xb4`', '"': '\u201c\u201d\u201e\u2033',
  '-': '\u2010\u2011\u2012\u2013\u2014\u2212\xad'}.items() for sign in signs})


def spaced(words: str) -> str:
  """Words with one blank between any two."""
  return ' '.join(words.split())


def folded(words: str) -> str:
  """Words as they are compared, whatever white space, capitals, composed letters, quotation marks
  and hyphens they have.
  """
  words = spaced(words).translate(_SIGNS)
  return (words if words.isascii() else unicodedata.normalize('NFKC', words)).casefold()


def occurrences(text: str, words: str) -> list[tuple[int, int]]:
  """The ranges of a text in which words stand, whatever white space is between them.

  Capital letters count unless the words stand nowhere with theirs. In a script that writes words
  apart, a part of a longer word is no occurrence.
  """
  text, words = text.translate(_SIGNS), words.translate(_SIGNS)
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

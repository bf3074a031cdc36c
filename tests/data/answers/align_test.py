"""The alignment against brute force, and the cases plain edit distance gets wrong."""

import functools

import numpy as np
import pytest

from fedmedjax.data.answers import align as A


def placed(text: str, copy: str) -> str:
  """The copy's characters written under the text's; '.' where the copy has nothing."""
  place, _ = A.align(text, copy)
  line = ['.'] * len(text)
  for j, i in enumerate(place):
    if i >= 0:
      line[i] = copy[j]
  return ''.join(line)


@pytest.mark.parametrize('text, copy, expected', [
  ('no chest pain', 'no chest pain', 'no chest pain'),
  ('chronic chest pain', 'chest pain', '........chest pain'),  # not 'ch......est pain'
  ('sore colitis arthritis', 'old colitis', '.old colitis..........'),  # 'itis' stays in its word
  ('pain in the knee', 'pain in kn', 'pain in ....kn..'),
  ('left arm, right arm', 'left arm, and the right arm', 'left arm, right arm'),
  ('acute\r\nchest pain', 'Acute\nchest pain', 'Acute\n.chest pain'),
  ('no asprin', 'no aspirin', 'no asprin'),
  ('rash', '', '....'),
  ('', 'rash', ''),
])
def test_where_characters_go(text, copy, expected):
  assert placed(text, copy) == expected


@pytest.mark.parametrize('words', [
  '患|者|发|热', 'アスピリン|を|投|与', '환자는| |열이', 'बुखार| |है', 'حمى| |شديدة',
  '给|予|aspirin|治', 'cm²| |a_1', 'می\u200cخواهم| |درد', 'क्\u200dष',  # joiners within words
])
def test_words_hold_together_and_characters_without_blanks_do_not(words):
  """A boundary is inside a word where no '|' stands: by Unicode's annex 29, of letters only."""
  parts = words.split('|')
  edges = set(np.cumsum([0, *map(len, parts)]).tolist())
  text = ''.join(parts)
  assert A.inside_word(text).tolist() == [at not in edges for at in range(len(text) + 1)]


def cheapest(text: str, copy: str) -> int:
  """The least cost by trying every edit; a gap is paid when it opens, closes, and per character.
  """
  inside = [A.inside_word(text), A.inside_word(copy)]

  @functools.cache
  def rest(i: int, j: int, gap: int) -> int:
    """From (i, j) on; gap: 0 in the text, 1 in the copy, 2 none is open."""
    at = (i, j)
    if gap < 2:  # close it here, or go on
      costs = [A.MID_WORD * inside[gap][at[gap]] + rest(i, j, 2)]
    else:
      costs = [0] if (i, j) == (len(text), len(copy)) else []
      if i < len(text) and j < len(copy):
        costs.append(A.SUBSTITUTE * (text[i] != copy[j]) + rest(i + 1, j + 1, 2))
    opening = [0 if gap == g else A.OPEN + A.MID_WORD * inside[g][at[g]] for g in (0, 1)]
    if i < len(text) and gap in (0, 2):
      costs.append(opening[0] + A.EXTEND + rest(i + 1, j, 0))
    if j < len(copy) and gap in (1, 2):
      costs.append(opening[1] + A.EXTEND + rest(i, j + 1, 1))
    return int(min(costs))

  return rest(0, 0, 2)


def cost(pairs: list[tuple[int, int]], text: str, copy: str) -> int:
  """What an alignment costs by the rules in the module docstring."""
  sides = (A.inside_word(text), A.inside_word(copy))
  total, at = 0, (0, 0)
  for pair in [*pairs, (len(text), len(copy))]:
    for inside, start, end in zip(sides, at, pair, strict=True):
      if end > start:
        total += A.OPEN + A.EXTEND * (end - start)
        total += A.MID_WORD * (int(inside[start]) + int(inside[end]))
    if pair[0] < len(text):
      total += A.SUBSTITUTE * (text[pair[0]] != copy[pair[1]])
    at = (pair[0] + 1, pair[1] + 1)
  return total


def test_no_alignment_is_cheaper():
  draw = np.random.default_rng(0)
  for _ in range(300):
    text, copy = (''.join(draw.choice(list('aab b'), draw.integers(1, 9))) for _ in range(2))
    opens = [(A.OPEN + A.MID_WORD * A.inside_word(s)).astype(np.int32) for s in (text, copy)]
    pairs = A._path(A._table(A._codes(text), A._codes(copy), *opens))[::-1]
    assert cost(pairs, text, copy) == cheapest(text, copy), (text, copy)


def test_places_grow_and_equal_ignores_case_only():
  place, equal = A.align('Fever and cough', 'fever, amd cough')
  assert (np.diff(place[place >= 0]) > 0).all()
  assert equal.sum() == len('fever a') + len('d cough')


def test_more_than_the_table_holds_is_left_unplaced(monkeypatch):
  """3 rows x 4 columns at most: the beginning is aligned, the shared end too, no more."""
  monkeypatch.setattr(A, 'MAX_ROWS', 3)
  monkeypatch.setattr(A, 'MAX_CELLS', 12)
  place, equal = A.align('abcdefgh end', 'xbcdefgx end')
  assert place.tolist() == [0, 1, 2, *[-1] * 5, 8, 9, 10, 11]
  assert equal.sum() == 2 + 4

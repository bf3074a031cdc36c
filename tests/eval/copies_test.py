"""What an answer may copy, in the tokens that it has beside a tag."""

import re

import numpy as np

from fedmedjax.eval import copies
from fedmedjax.model.speculation import CUT, END


class Words:
  """A tokenizer: words with the blank before them; without one only four letters are a token, and
  what ends a tag takes a comma along."""

  def __init__(self):
    self.known = ['?']

  def __call__(self, texts, add_special_tokens):
    assert not add_special_tokens
    if isinstance(texts, str):
      return {'input_ids': self([texts], add_special_tokens)['input_ids'][0]}
    found = [re.findall(r'>,| \w+|\w{1,4}|</?|.', text) for text in texts]
    self.known += sorted({token for one in found for token in one} - {*self.known})
    return {'input_ids': [[self.known.index(token) for token in one] for one in found]}

  def convert_ids_to_tokens(self, ids):
    return [self.known[token].replace(' ', 'Ġ') for token in ids]

  def decode(self, ids, clean_up_tokenization_spaces):
    assert not clean_up_tokenization_spaces
    return ''.join(self.known[token] for token in ids)


def test_words_behind_a_tag_and_what_a_tag_joins():
  """The input's first token is the instruction's. Of ' large' and ' lung,' others are the tokens
  without the blank: 'larg' 'e', and 'lung' ','; the comma joins the end of a tag."""
  words = Words()
  tokens = np.array(words('? large lung, (1', add_special_tokens=False)['input_ids'])
  (found,) = copies.sources(words, ['<b>', '</b>'], [tokens])
  held = [token if token < 0 else words.known[token] for token in found.tokens.tolist()]
  assert held == ['?', ' large', ' lung', ',', ' ', '(', '1', -1,
                  'larg', 'e', 'lung', ',', '(', '1', '>,', '>,']
  # What follows each of the new ones: the rest of the word, the next word, or what is behind it.
  assert found.after[8:].tolist() == [9, 2, 11, 4, 13, 7, 4, 4]


def test_an_input_of_one_word_or_of_none():
  """No token has a blank before it, as where all are letters: only what a tag joins is new."""
  words = Words()
  one, none = (np.array(words(text, add_special_tokens=False)['input_ids'], int)
               for text in ('cold,', ''))
  found, empty = copies.sources(words, ['<b>', '</b>'], [one, none])
  assert [words.known[token] for token in found.tokens.tolist() if token >= 0] == [
    'cold', ',', '>,']
  assert not [token for token in empty.tokens.tolist() if token >= 0]


def test_without_two_kinds_of_tags_an_input_is_copied_as_it_is():
  inputs = [np.arange(3), np.arange(2)]
  assert copies.sources(None, ['</b>'], inputs) == copies.sources(None, [], inputs) == [None, None]


def test_pieces_are_the_tokens_behind_a_word_and_behind_a_blank():
  """A tokenizer of single letters, but of ' <' as one token: behind a blank it begins earlier."""
  def letters(text, add_special_tokens):
    assert not add_special_tokens
    ids = [ord(letter) for letter in text.replace(' <', '\x01')]
    return {'input_ids': ids}

  assert copies.piece_tokens(letters, ['<b']).tolist() == [
    ord('<'), ord('b'), CUT, 1, ord('b'), CUT]
  # A closing tag changes nothing of the word behind it.
  assert copies.piece_tokens(letters, ['</'])[[2, 5]].tolist() == [END, END]
  assert copies.piece_tokens(letters, []).tolist() == [END]

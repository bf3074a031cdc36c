"""Which part of a corpus a file or folder holds, by the words of its name."""

import re
from collections.abc import Sequence

from fedmedjax.types import InputError

PARTS = ('train', 'dev', 'test')
_WORDS = {
  'train': 'train', 'training': 'train', 'test': 'test', 'testing': 'test', 'dev': 'dev',
  'devel': 'dev', 'develop': 'dev', 'development': 'dev', 'val': 'dev', 'valid': 'dev',
  'validation': 'dev'}
# TrainSet, trainset, NCBItrainset; longer words first, so that 'training' is not 'train'.
_GLUED = re.compile(rf'.*?({"|".join(sorted(_WORDS, key=len, reverse=True))})(?:set|data)')
_WORD = re.compile(r'[A-Z]+(?![a-z])|[A-Z]?[a-z]+')
_LETTERS = re.compile(r'[A-Za-z]+')
# Up to so many files are a corpus in pieces; more are notes, whose names may say anything.
_PIECES = 5
# One division of the notes of several.
_DIVISION = re.compile(r'(?:fold|split|cv)[-_. ]?(\d+)', re.IGNORECASE)
_PAPERS = {'readme', 'license', 'licence', 'changelog', 'source', 'guidelines'}


def named_parts(name: str) -> set[str]:
  """The parts that a name has as words, whatever their case and what is between them."""
  words = {word.lower() for pattern in (_WORD, _LETTERS) for word in pattern.findall(name)}
  glued = (_GLUED.fullmatch(word) for word in words)
  return {_WORDS[word] for word in words if word in _WORDS} | {
    _WORDS[match[1]] for match in glued if match}


def parts_by_name(names: Sequence[str], where: str) -> dict[str, list[str]]:
  """{part: names}, {} where names name no parts.

  A name that is a part's alone, such as 'test', is enough; others beside it are not read. Where
  parts are words of longer names, all must have one.

  Args:
    names: of files and folders, without what they end in.
    where: they lie, for the error.

  Raises:
    InputError: it is not clear what belongs to which part: a name has two or, among others that
      have one, none, or there is a training part and no test part.
  """
  of = {name: named_parts(name) for name in names}
  alone = {name for name in names if name.lower() in _WORDS}
  found = {part: [name for name in names if of[name] == {part}] for part in PARTS}
  found = {part: there for part, there in found.items() if there}
  several = [name for name in names if len(of[name]) > 1]
  without = [name for name in names if not of[name] and not named_papers(name)]
  few = len(names) <= _PIECES
  divisions = {match[1]: name for name in names if of[name] and (match := _DIVISION.search(name))}
  if len(divisions) > 1 and found.keys() >= {'train', 'test'}:
    raise InputError(f'{where}: {" and ".join([*divisions.values()][:2])} are of two divisions of '
                     'the same notes, by their names; leave the files of one there')
  if several and (few or found.keys() >= {'train', 'test'}):
    raise InputError(f'{where}: {several[0]} names {" and ".join(sorted(of[several[0]]))}; '
                     'one of train, dev, test is allowed in a name')
  if 'train' in found and 'test' not in found and (
      any(of[name] == {'train'} for name in alone) or few and ('dev' in found or without)):
    raise InputError(f'{where} has {found["train"][0]} but no test part; name one test')
  if any(of[name] == {'test'} for name in alone):
    return found
  if 'test' not in found or few and not without and len(found) == 1:
    return {}
  if not without and len(found) > 1:
    return found
  if few or 'train' in found:
    raise InputError(
      f'{where}: {found["test"][0]} is named for the part test, and {(without or names)[0]} for '
      'none; have train, dev or test in each name, or in none')
  return {}


def named_papers(name: str) -> bool:
  """Whether a file is about the notes, by its name, and holds none."""
  return bool(_PAPERS & {word.lower() for word in _LETTERS.findall(name)})

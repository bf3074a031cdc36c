"""Where the files of a note lie in an output: by its name, a file's or any other id."""

import os
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

LONGEST_NAME = 240  # bytes: file systems allow 255, and outputs have longer endings
# What no part of a path can have, or what would lead out of a folder; % since it stands for these.
_UNSAFE = re.compile(r'[/\\%\x00-\x1f\x7f]|^\.|[. ]$')
# Endings that a folder of an output cannot have, since a note's file may have its name.
_ENDINGS = ('.txt', '.ann', '.html', '.xmi', '.json')


def place(name: str) -> str:
  """A note's name as a path below an output's folder.

  That of a text file, and an id like one, stays as it is, with its folders. Of other ids the signs
  that paths cannot have are written as in URLs: '../7' becomes '%2E.%2F7'.
  """
  *folders, file = name.split('/')
  if file.lower().endswith('.txt') and not file.startswith('.') and '\0' not in name and not any(
      part.startswith('.') or not part or part.lower().endswith(_ENDINGS) for part in folders):
    return name
  return _UNSAFE.sub(lambda sign: f'%{ord(sign[0]):02X}', name)


def stem(name: str) -> str:
  """A note's name in brat: its file without the ending .txt."""
  # NOTE.TXT keeps its ending, since a NOTE.txt may exist as well.
  return place(name).removesuffix('.txt')


def too_long(name: str) -> str:
  """Why a name is too long for a file, or ''."""
  last = PurePosixPath(place(name)).name
  return f'its name is longer than {LONGEST_NAME} bytes' if (
    len(os.fsencode(last)) > LONGEST_NAME) else ''


def in_own_places(names: Iterable[str], skipped: dict[str, str]) -> list[str]:
  """The names, without those whose files in brat another note has, which join `skipped`."""
  first: dict[str, str] = {}  # {name in brat: the first name of it}
  for name in names:
    if first.setdefault(stem(name), name) != name:
      skipped[name] = f'has the same name in brat as {first[stem(name)]}'
  return list(first.values())

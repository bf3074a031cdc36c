"""What a site keeps on disk between messages: its own part of the method, and its last answer.

FOLDER/site.json names the files that belong together and is replaced last, so that a site that is
killed at any moment goes on from before or after a message. Arrays are in safetensors, by their
number in the tree.
"""

import hashlib
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy

from fedmedjax.fed.types import Tree
from fedmedjax.store import files
from fedmedjax.types import InputError

STATE, MANIFEST, LEAVES = 'site.json', 'manifest.jsonl', 'leaves.json'
# The adapter that the site was given at the end, as it is computed with.
_FINAL = 'final.safetensors'
NEVER = -1


class Anchor(NamedTuple):
  """What the server has sent so far, as the next message supposes it."""

  adapter: Tree    # [*p]
  folded: Tree
  ctrl: Tree       # the server's control variate [*p], or ()


class Kept(NamedTuple):
  """The rounds that the site's files are of, NEVER = none."""

  anchor_round: int = NEVER   # the last round whose message came
  changed: int = 0            # rounds that had changed something then
  rounds: tuple[int, ...] = ()  # that left a state which is kept
  begun_from: int = NEVER     # the round that left the state which the newest of them began from
  question: str = ''          # digest of the message that is answered by the kept answer


class Keeping:
  """The folder of a site in one study."""

  def __init__(self, folder: Path, identity: str, notes: str, warn: Callable[[str], None]):
    """Opens the folder, or begins it.

    Args:
      folder: made when absent.
      identity: of the study; one folder is of one study.
      notes: digest of the site's notes; with others it is another site, which begins anew.
      warn: is told so.

    Raises:
      InputError: the folder is of another study, or what is in it cannot be read.
    """
    self.folder = folder
    self._files: dict[str, str] = {}
    self.kept, self.data = Kept(), secrets.token_hex(8)
    folder.mkdir(parents=True, exist_ok=True)
    state = files.read_json(folder / STATE) if (folder / STATE).exists() else {}
    if state and state.get('study') != identity:
      raise InputError(
        f'--workdir={folder}: holds the state of another study, or of this one before its '
        'configuration was changed; choose another folder')
    self._identity, self._notes = identity, notes
    if state and state.get('notes') != notes:
      warn(f'{folder}: the notes are not those that this site began with: it begins anew, and a '
           'server that knows it leaves it out; bring them back, or begin a new study')
      state = {}
    try:
      if state:
        self.data, self._files = str(state['data']), dict(state['files'])
        self.kept = Kept(**state['kept'])._replace(rounds=tuple(state['kept']['rounds']))
    except (KeyError, TypeError, ValueError):
      raise InputError(
        f'{folder / STATE}: is not what was written; choose another folder') from None
    self._write()
    # A kill may have left half a line, and lines are added behind it.
    files.write_lines(folder / MANIFEST, files.read_lines(folder / MANIFEST))

  def load(self, name: str, like: Tree) -> Tree | None:
    """The arrays kept as `name`, in the structure of `like`; None where there are none.

    Raises:
      InputError: they are damaged, or of other shapes.
    """
    if name not in self._files:
      return None
    path = self.folder / self._files[name]
    tree = _read(path, like)[0]
    if any(one.shape != other.shape for one, other in zip(
        jax.tree.leaves(tree), jax.tree.leaves(like), strict=True)):
      raise InputError(f'{path}: holds arrays of other shapes')
    return tree

  def keep_final(self, adapter: Tree) -> None:
    """Puts the adapter of the end on disk, its leaves of whatever shapes."""
    _written(self.folder / _FINAL, safetensors.numpy.save(_numbered(adapter)))

  def final(self, like: Tree) -> tuple[Tree, bytes] | None:
    """(the adapter of the end in the structure of `like`, the file's bytes); None = none came.

    Raises:
      InputError: it is damaged.
    """
    path = self.folder / _FINAL
    return _read(path, like) if path.exists() else None

  def answer(self, question: bytes) -> bytes | None:
    """The answer that is kept, where it is to this very message."""
    if 'answer' not in self._files or self.kept.question != digest(question):
      return None
    try:
      return (self.folder / self._files['answer']).read_bytes()
    except OSError:
      return None

  def keep(
    self, kept: Kept, trees: dict[str, Tree | None], answer: bytes, staying: Iterable[str] = ()
  ) -> None:
    """Puts all of it on disk, as one, in place of what was there; None = nothing is kept.

    Trees that were kept before as one of `staying` stay.
    """
    tag, old = kept.question[:12], set(self._files.values())
    # Where the disk is full, what was kept before still is.
    written = {name: self._files[name] for name in staying if name in self._files}
    for name, values in trees.items():
      if values is None:
        continue
      written[name] = f'{name}-{tag}.safetensors'
      _written(self.folder / written[name], safetensors.numpy.save(_numbered(values)))
    written['answer'] = f'answer-{tag}.safetensors'
    _written(self.folder / written['answer'], answer)
    self._files, self.kept = written, kept
    self._write()
    for name in old - set(self._files.values()):
      (self.folder / name).unlink(missing_ok=True)

  def record(self, line: dict[str, Any]) -> None:
    """Adds a line to the manifest of what has left."""
    files.append_line(self.folder / MANIFEST, files.plain(line))

  def list_leaves(self, rows: Iterable[dict[str, Any]]) -> None:
    """Writes what can leave, before anything does."""
    files.write_json(self.folder / LEAVES, {'leaves': list(rows)})

  def _write(self) -> None:
    files.write_json(self.folder / STATE, {
      'study': self._identity, 'notes': self._notes, 'data': self.data,
      'kept': self.kept._asdict(), 'files': self._files})


def digest(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()[:32]


def _numbered(values: Tree) -> dict[str, np.ndarray]:
  return {str(number): np.ascontiguousarray(np.asarray(leaf)).reshape(np.shape(leaf))
          for number, leaf in enumerate(jax.tree.leaves(values))}


def _read(path: Path, like: Tree) -> tuple[Tree, bytes]:
  """(the arrays of `_numbered` in the structure of `like`, the file); InputError if damaged."""
  try:
    data = path.read_bytes()
    arrays = safetensors.numpy.load(data)
    read = [arrays[str(number)] for number in range(len(jax.tree.leaves(like)))]
  except (OSError, KeyError, safetensors.SafetensorError) as error:
    raise InputError(f'{path}: cannot be read: {error}') from None
  return jax.tree.unflatten(jax.tree.structure(like), read), data


def _written(path: Path, data: bytes) -> None:
  """On disk when this returns; a file of the same name is replaced as a whole."""
  part = path.with_name(path.name + '.part')
  with part.open('wb') as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
  part.replace(path)

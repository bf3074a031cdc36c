"""What every program begins and ends with."""

import importlib.metadata

import jax
import numpy as np
import pytest
from absl import flags

import fedmedjax
from fedmedjax.runtime import cli


def test_versions_of_a_checkout_that_is_only_on_the_path(monkeypatch):
  """No package is installed; each says its own version, as the installed ones do."""
  installed = cli.versions()

  def version(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, 'version', version)
  found = cli.versions()
  assert found == installed
  assert found['fedmedjax'] == fedmedjax.__version__
  assert (found['jax'], found['numpy']) == (jax.__version__, np.__version__)


def declared(values: flags.FlagValues) -> None:
  flags.DEFINE_string('output', 'out', 'Folder to write.', flag_values=values)
  flags.DEFINE_bool('quick', False, 'Without checks.', flag_values=values)


@pytest.mark.parametrize('word', ['--help', '-help', '-h', '--helpfull'])
def test_help_says_what_the_module_does_and_its_flags(word, capsys):
  """The module is the one that declares the flags, whoever runs it."""
  with pytest.raises(SystemExit) as left:
    cli.read_flags(['program', '--output=x', word], declared)
  assert left.value.code == 0
  shown = capsys.readouterr().out
  assert shown.startswith(f'{__doc__}\n')
  assert '  --output=out\n      Folder to write.\n  --[no]quick\n      Without checks.\n' in shown


def test_a_file_that_cannot_be_written_is_named_in_one_line(tmp_path, capsys):
  folder = tmp_path / 'run'

  def body():
    (folder / 'a.part').replace(folder / 'a')

  assert cli.guarded(body) == 1
  assert capsys.readouterr().err == (
    f'failed: {folder}/a.part: No such file or directory; its folder is not there any more\n')
  folder.mkdir()
  assert cli.guarded(body) == 1
  assert capsys.readouterr().err == f'failed: {folder}/a.part: No such file or directory\n'

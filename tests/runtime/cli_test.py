"""What every program begins and ends with."""

import importlib.metadata
import os
import subprocess
import sys

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


@pytest.mark.parametrize('value', ['1', 'True', None])
def test_64_bits_are_refused_in_a_line(value, monkeypatch, capsys):
  """However they were asked for: in the environment, or by the program around."""
  monkeypatch.delenv('JAX_ENABLE_X64', raising=False)
  if value:
    monkeypatch.setenv('JAX_ENABLE_X64', value)
  with jax.enable_x64(True):
    assert cli.guarded(cli.set_up) == 2
  error = capsys.readouterr().err
  assert error.startswith(f'error: JAX_ENABLE_X64={value or True}: ') and error.count('\n') == 1


@pytest.mark.parametrize('setting, message', [
  (lambda: jax.numpy_dtype_promotion('strict'), 'JAX_NUMPY_DTYPE_PROMOTION=strict: '),
  (lambda: jax.default_device('gpu'), 'JAX_DEFAULT_DEVICE=gpu: JAX finds no such device'),
])
@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='a device is there')
def test_settings_that_code_is_not_written_for_are_refused(setting, message, capsys):
  with setting():
    assert cli.guarded(cli.set_up) == 2
  error = capsys.readouterr().err
  assert error.startswith(f'error: {message}') and error.count('\n') == 1


@pytest.mark.parametrize('name', ['jax_numpy_rank_promotion', 'jax_default_device'])
def test_a_value_that_jax_refuses_is_one_line(name, capsys):
  """JAX raises it where it is imported; any other ValueError is a fault of the program."""
  assert cli.guarded(lambda: jax.config.update(name, 'bogus')) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: JAX's settings") and 'bogus' in error and error.count('\n') == 1
  with pytest.raises(ValueError, match='invalid literal'):
    cli.guarded(lambda: int('x'))


@pytest.mark.parametrize('raised', [
  AssertionError(), RuntimeError("Unable to initialize backend 'tpu': UNAVAILABLE\nmore lines"),
  ValueError('no card')])
def test_a_device_that_is_not_there_is_named_in_a_line(raised, monkeypatch, capsys):
  """JAX raises whatever the plug-in does, also assertions without a word."""
  def devices():
    raise raised

  monkeypatch.setattr(jax, 'devices', devices)
  assert cli.guarded(cli.set_up) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: JAX_PLATFORMS=') and error.count('\n') == 1


@pytest.mark.skipif(jax.default_backend() != 'cpu', reason='a device is there')
def test_what_programs_begin_with_says_that_a_device_is_missing():
  """Of a process that asks for one, as JAX itself finds it missing here."""
  code = 'import sys; from fedmedjax.runtime import cli; sys.exit(cli.guarded(cli.set_up))'
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                       env=os.environ | {'JAX_PLATFORMS': 'cuda'})
  assert out.returncode == 2
  assert 'error: JAX_PLATFORMS=cuda: JAX finds no such device' in out.stderr
  assert 'Traceback' not in out.stderr


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

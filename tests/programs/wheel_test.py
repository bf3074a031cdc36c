"""The package as others get it: built, installed in a folder of its own, run from anywhere.

The folder stands before everything else on the path, the checkout is on none; dependencies are
those of the tests' environment.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fedmedjax

ROOT = Path(fedmedjax.__file__).parent.parent
SMALL = [
  '--config.eval.max_examples=1', '--config.eval.bootstrap_samples=20',
  '--config.eval.max_new_ratio=0.1', '--config.eval.zero_shot=False']
# A study as a user writes it, with modules of their own beside it.
STUDY = '''
from configs import mine
from fedmedjax.experiment.defaults import get_config as defaults


def get_config(preset='fed_medlora'):
  config = defaults(preset)
  config.data.update(sites=mine.SITES, external=(), max_length=160, validation_examples=0)
  config.fed.update(rounds=1, local_steps=1, batch_size=2, chunk=1, shapes=1)
  config.lora.update(rank=2, targets=('q_proj',))
  config.log.steps = False
  return config
'''


def run(command, cwd, installed=None, **more):
  """A program in a folder, with `installed` as the only addition to the path."""
  env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
  if installed:
    env['PYTHONPATH'] = str(installed)
  return subprocess.run(
    list(map(str, command)), cwd=cwd, env=env | more, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
  """Built from a copy: what builds of the checkout left behind would get in."""
  source, target = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
  for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, source)
  for name in ('fedmedjax', 'configs'):
    shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
  done = run(
    [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--no-index',
     '--quiet', '--wheel-dir', target, source], target)
  assert done.returncode == 0, done.stderr
  file, = target.glob('*.whl')
  return file


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory) -> Path:
  folder = tmp_path_factory.mktemp('installed')
  done = run(
    [sys.executable, '-m', 'pip', 'install', '--no-deps', '--no-index', '--quiet', '--target',
     folder, wheel], folder)
  assert done.returncode == 0, done.stderr
  return folder


@pytest.fixture(scope='module')
def own(tmp_path_factory) -> Path:
  """A user's folder: a study, and a package `configs` that is not ours."""
  folder = tmp_path_factory.mktemp('own')
  (folder / 'configs').mkdir()
  (folder / 'configs' / '__init__.py').write_text('')
  (folder / 'configs' / 'base.py').write_text("raise RuntimeError('nobody asked for this')\n")
  (folder / 'configs' / 'mine.py').write_text("SITES = ('synthetic_icu', 'synthetic_clinic')\n")
  (folder / 'study.py').write_text(STUDY)
  return folder


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
  files = {
    str(path.relative_to(ROOT)) for path in (ROOT / 'fedmedjax').rglob('*')
    if path.is_file() and '__pycache__' not in path.parts}
  with zipfile.ZipFile(wheel) as archive:
    names = set(archive.namelist())
    information = f'fedmedjax-{fedmedjax.__version__}.dist-info/'
    about = archive.read(f'{information}METADATA').decode()
    commands = archive.read(f'{information}entry_points.txt').decode()
  assert {name for name in names if not name.startswith(information)} == files
  assert f'{information}licenses/LICENSE' in names and 'License: Apache-2.0' in about
  assert f'Version: {fedmedjax.__version__}\n' in about
  assert re.findall(r'^(\S+) =', commands, re.MULTILINE) == [
    'fedmedjax', 'fedmedjax-audit', 'fedmedjax-compare', 'fedmedjax-describe',
    'fedmedjax-predict', 'fedmedjax-sweep']


def test_a_study_in_a_folder_that_has_its_own_configs(installed, own, tiny_folder):
  found = run(
    [sys.executable, '-c', 'import fedmedjax; print(fedmedjax.__file__)'], own, installed)
  assert Path(found.stdout.strip()).parent == installed / 'fedmedjax'
  done = run(
    [sys.executable, '-m', 'fedmedjax.main', '--config=study.py', '--workdir=runs/one',
     f'--config.model.path={tiny_folder}', *SMALL], own, installed)
  assert done.returncode == 0, done.stderr
  summary = json.loads((own / 'runs' / 'one' / 'summary.json').read_text())
  assert summary['sites'] == ['synthetic_icu', 'synthetic_clinic']
  assert summary['preset'] == 'fed_medlora' and summary['local_steps'] == 2
  assert summary['versions']['fedmedjax'] == fedmedjax.__version__
  # What to do next, above the warnings of so brief a training.
  assert any('--config=study.py' in line for line in done.stdout.splitlines()[-20:])
  # And by the command, which has not the user's folder on its path by itself.
  again = run(
    [installed / 'bin' / 'fedmedjax', '--config=study.py', '--workdir=runs/one',
     f'--config.model.path={tiny_folder}', *SMALL], own, installed)
  assert again.returncode == 0, again.stderr
  assert 'finished, nothing to do' in again.stdout


def test_a_shipped_configuration_by_name_from_anywhere(installed, own, tiny_folder):
  # Zero-shot, since nothing is compiled for it.
  done = run(
    [installed / 'bin' / 'fedmedjax', '--config', 'fedmedjax:quickstart:zero_shot',
     '--validate_only', f'--config.model.path={tiny_folder}'], own, installed)
  assert done.returncode == 0, done.stderr
  assert 'synthetic_dictation' in done.stdout and 'Nothing was written' in done.stdout
  wrong = run(
    [sys.executable, '-m', 'fedmedjax.main', '--config=fedmedjax:slowstart'], own, installed)
  assert wrong.returncode == 2 and wrong.stderr.count('\n') == 1
  assert "'slowstart' is not shipped; allowed are ablation, clinical_bert" in wrong.stderr


@pytest.mark.parametrize('name', ['', '-compare', '-predict', '-describe'])
def test_the_commands_say_how_they_are_used(name, installed, own):
  done = run([installed / 'bin' / f'fedmedjax{name}', '--help'], own, installed)
  assert done.returncode == 0, done.stderr
  assert f'    python -m fedmedjax.{name[1:] or "main"} --' in done.stdout
  assert '--workdir=' in done.stdout or '--output=' in done.stdout
  missing = run([installed / 'bin' / f'fedmedjax{name}'], own, installed)
  assert missing.returncode == 2 and 'is missing' in missing.stderr

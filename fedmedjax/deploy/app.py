"""Writes a study as a Flower app: a folder that `flwr run` takes.

    python -m fedmedjax.deploy.app --config=fedmedjax:quickstart --output=flower/quickstart
    python -m fedmedjax.deploy.app --config=mine.py:fed_medlora --output=flower/b --workdir=/srv/b

The configuration and the files of yours that it names are copied into DIR/study, which is also what
every site needs. Nothing is trained, and Flower need not be installed here. docs/deployment.md goes
on from there.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from fedmedjax import __version__
from fedmedjax.deploy.transport import checked_deadline
from fedmedjax.experiment.command_line import parse
from fedmedjax.runtime.cli import guarded
from fedmedjax.types import InputError

# Begins every pyproject.toml that this program wrote, and may so write again.
_MARK = '# Written by python -m fedmedjax.deploy.app'
_PACKAGE, _CONFIG = 'study', 'config.py'
_LONGEST_NAME = 32  # of an app, in Flower

_PYPROJECT = '''{mark}; see docs/deployment.md of fedmedjax.
[project]
name = "{name}"
version = "1.0.0"
description = "{description}"
license = "Apache-2.0"
dependencies = ["flwr>=1.42", "fedmedjax=={version}"]

[tool.flwr.app]
publisher = "fedmedjax"

[tool.flwr.app.components]
serverapp = "study.server_app:app"
clientapp = "study.client_app:app"

[tool.flwr.app.config]
# Folder of the run at the server, from where the SuperLink was started.
workdir = {workdir}
# Seconds that a site may take for its part of a round.
deadline = {deadline}
# What is special to this server, such as "--config.model.path=/models/base.gguf".
overrides = ""
'''
_SERVER = '''"""The server of this study: rounds, aggregation, checkpoints."""

from pathlib import Path

from fedmedjax.deploy import flower_server

app = flower_server.server_app(Path(__file__).parent / '{config}')
'''
_CLIENT = '''"""What runs at a site for each message: it asks the site's own process."""

from fedmedjax.deploy import flower_client

app = flower_client.app
'''
_STUDY = '''"""The configuration of this study, for the server and for every site.

{mark}. What is not named here has its default.
"""

from fedmedjax.experiment import defaults

CHANGED = {{
{changed}
}}


def get_config():
  config = defaults.get_config()
  config.update_from_flattened_dict(CHANGED)
  return config
'''


def define(values: flags.FlagValues) -> None:
  flags.DEFINE_string('output', None, 'Folder of the app, made here.', flag_values=values)
  flags.DEFINE_string(
    'workdir', None, "Folder of the run at the server; '' = runs/NAME, with the last name of "
    '--output.', flag_values=values)
  flags.DEFINE_float(
    'deadline', 3600.0, 'Seconds that a site may take for its part of a round.', flag_values=values)


def main(argv: Sequence[str] | None = None) -> int:
  """The program -> its exit status; `argv` is sys.argv where none is given."""
  argv = sys.argv if argv is None else argv

  def body():
    config, values, _ = parse(argv, define)
    if not values.output:
      raise InputError('--output is missing: name a folder, such as --output=flower/study')
    folder, deadline = Path(values.output), checked_deadline(values.deadline, '--deadline')
    files = app_files(
      config.to_dict(), _name(folder), values.workdir or f'runs/{folder.name}', deadline)
    write(folder, files)
    print(f'{folder}: written; {folder / _PACKAGE} is what every site needs, too')

  return guarded(body)


def app_files(
  settings: Mapping[str, Any], name: str, workdir: str, deadline: float
) -> dict[str, str]:
  """{path in the app's folder: text}.

  Args:
    settings: a validated configuration, as a nested dict.
    name: of the app in Flower.
    workdir: of the run, at the server.
    deadline: seconds that a site has for its part of a round.

  Raises InputError: a study that can only be simulated, a file that the configuration names cannot
  be read, or two have one name.
  """
  # Here since they take seconds: --help and mistakes are answered before.
  from fedmedjax.experiment import defaults
  from fedmedjax.experiment.config import leaves
  from fedmedjax.experiment.own_parts import own_parts
  from fedmedjax.experiment.undeployed import check_deployable
  usual, flat = leaves(defaults.get_config().to_dict()), leaves(dict(settings))
  check_deployable(flat, own_parts(flat))
  copied, flat = _own_files(flat)
  changed = {key: value for key, value in flat.items()
             if key not in usual or repr(value) != repr(usual[key])}
  study = _STUDY.format(mark=_MARK.removeprefix('# '), changed='\n'.join(
    f'  {key!r}: {value!r},' for key, value in sorted(changed.items())))
  project = _PYPROJECT.format(
    mark=_MARK, name=name, version=__version__, workdir=_quoted(workdir), deadline=deadline,
    description=f'{len(flat["data.sites"])} sites, {flat["fed.rounds"]} rounds')
  return {
    'pyproject.toml': project, f'{_PACKAGE}/__init__.py': '',
    f'{_PACKAGE}/server_app.py': _SERVER.format(config=_CONFIG),
    f'{_PACKAGE}/client_app.py': _CLIENT, f'{_PACKAGE}/{_CONFIG}': study,
  } | {f'{_PACKAGE}/{file}': text for file, text in copied.items()}


def write(folder: Path, files: Mapping[str, str]) -> None:
  """Writes an app; InputError where something else is there, or the folder cannot be made."""
  project = folder / 'pyproject.toml'
  try:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir()) and not (
        project.is_file() and project.read_text(errors='replace').startswith(_MARK))):
      raise InputError(
        f'--output={folder}: something else is there; name a new folder, or one of an app that '
        'this program wrote')
    for name, text in files.items():
      path = folder / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(text, encoding='utf-8')
  except OSError as error:
    raise InputError(f'--output={folder}: cannot be written: {error.strerror}') from None


def _own_files(flat: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
  """({name: text} of the user's files, the configuration that names them without folders)."""
  from fedmedjax.experiment.own_parts import OWN_KEYS, is_own
  # A schema may also be the name of one that is shipped.
  named = {
    key: flat[key] for key in ('data.schema', 'data.prompt') if flat[key].endswith('.toml')}
  named |= {key: flat[key] for key in OWN_KEYS if is_own(flat.get(key))}
  taken = {'__init__.py', 'server_app.py', 'client_app.py', _CONFIG}
  copied, sources, changed = {}, {}, {}
  for key, value in named.items():
    file, colon, function = value.rpartition(':') if key in OWN_KEYS else (value, '', '')
    path = Path(file)
    if path.name in taken or sources.get(path.name, path) != path:
      raise InputError(f'config.{key}={value!r}: the app has another file {path.name}; rename it')
    try:
      copied[path.name] = path.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
      raise InputError(f'config.{key}={value!r}: cannot be read: {error}') from None
    sources[path.name] = path
    changed[key] = f'{path.name}{colon}{function}'
  return copied, {**flat, **changed}


def _name(folder: Path) -> str:
  """What Flower calls the app: the folder's name as far as Flower allows it."""
  name = re.sub(r'[^a-z0-9]+', '-', folder.resolve().name.lower()).lstrip('-0123456789')
  return name[:_LONGEST_NAME].rstrip('-') or 'study'


def _quoted(text: str) -> str:
  """A TOML string: one of JSON is one, but for a character that TOML wants escaped."""
  return json.dumps(text, ensure_ascii=False).replace('\x7f', r'\u007f')


if __name__ == '__main__':
  sys.exit(main())

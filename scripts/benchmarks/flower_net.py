"""A SuperLink and SuperNodes on this machine, as processes that end with this one.

    with Net(folder, {'a': Path('a.sock')}) as net:
      net.run(app_folder)

With `keys`, a folder of scripts/flower_keys.sh, by TLS and with registered keys. Needs the extra
`deploy`: Flower's programs are those beside this Python.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_BIN = Path(sys.executable).parent
_SCRIPTS = Path(__file__).resolve().parent.parent
# Seconds that a program may take until it listens; these are slow to import.
_START = 90.0
LINK = 'here'  # the name of the connection in Flower's configuration


def free_port() -> int:
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def listens(port: int) -> bool:
  with socket.socket() as probe:
    return probe.connect_ex(('127.0.0.1', port)) == 0


def wait_for(condition, what: str, seconds: float) -> None:
  """Raises RuntimeError when `condition()` is still false after so many seconds."""
  until = time.monotonic() + seconds
  while not condition():
    if time.monotonic() > until:
      raise RuntimeError(f'{what}: not after {seconds:.0f} s')
    time.sleep(0.1)


class Net:
  """Server and sites; every process writes FOLDER/NAME.log."""

  def __init__(
    self, folder: Path, sites: Mapping[str, Path], keys: Path | None = None,
    database: bool = False,
  ):
    """
    Args:
      folder: of all files of these processes.
      sites: {name: unix socket of its process}.
      keys: None = neither TLS nor names.
      database: the SuperLink knows its SuperNodes after a restart, too.
    """
    self._database = [f'--database={folder / "link.db"}'] if database else []
    self.folder, self.sites, self.keys = folder, dict(sites), keys
    self.port = free_port()
    self.processes: dict[str, subprocess.Popen] = {}
    self._environment = os.environ | {
      'FLWR_TELEMETRY_ENABLED': '0', 'FLWR_DISABLE_UPDATE_CHECK': '1',
      'FLWR_SUPEREXEC_TASK_POLL_INTERVAL': '0.1',
      # All of it is on loopback, which no proxy reaches.
      **dict.fromkeys(('no_proxy', 'NO_PROXY', 'no_grpc_proxy'), '127.0.0.1,localhost'),
      # An app may import from here.
      'PYTHONPATH': os.pathsep.join([
        str(_SCRIPTS), str(_SCRIPTS.parent), os.environ.get('PYTHONPATH', '')]),
      # Flower's programs start each other by name.
      'PATH': f'{_BIN}{os.pathsep}{os.environ["PATH"]}'}
    folder.mkdir(parents=True, exist_ok=True)

  def __enter__(self) -> 'Net':
    try:
      self.start_link()
      for number, name in enumerate(self.sites):
        self._start(f'node_{name}', number + 1, self.node_command(name))
      for name in (f'node_{site}' for site in self.sites):
        wait_for(lambda name=name: self.alive(name) and 'SuperNode ID' in self.log(name),
                 f'{name} at the SuperLink', _START)
    except BaseException:
      self.__exit__()
      raise
    return self

  def __exit__(self, *_) -> None:
    for name in list(self.processes):
      self.kill(name)

  def start_link(self) -> None:
    """Starts the SuperLink, also once more after `kill('link')`."""
    home, keys = self._home(0), self.keys
    home.mkdir(exist_ok=True)
    safe = f'root-certificates = "{keys}/ca.crt"' if keys else 'insecure = true'
    (home / 'config.toml').write_text(
      f'[superlink]\ndefault = "{LINK}"\n[superlink.{LINK}]\n'
      f'address = "127.0.0.1:{self.port}"\n{safe}\n')
    flags = [
      f'--ssl-ca-certfile={keys}/ca.crt', f'--ssl-certfile={keys}/server.crt',
      f'--ssl-keyfile={keys}/server.key', '--enable-supernode-auth'] if keys else ['--insecure']
    self._start('link', 0, [
      _BIN / 'flower-superlink', f'--port={self.port}',
      '--disable-runtime-dependency-installation', *self._database, *flags])
    wait_for(lambda: self.alive('link') and listens(self.port), 'a SuperLink', _START)
    for name in self.sites if keys else ():
      self._start('register', 0, [
        _BIN / 'flwr', 'supernode', 'register', f'{keys}/{name}.key.pub', LINK, f'--name={name}'])
      if self.processes.pop('register').wait(_START):
        raise RuntimeError(self.log('register'))

  def node_command(self, name: str, key: str | None = None) -> list:
    """How a site's SuperNode is started; `key` is a file in place of the site's own."""
    path, keys = self.sites[name], self.keys
    # With keys the SuperLink knows the name.
    config = f'socket="{path}"' if keys else f'site="{name}" socket="{path}"'
    flags = [
      f'--root-certificates={keys}/ca.crt',
      f'--auth-supernode-private-key={key or f"{keys}/{name}.key"}'] if keys else ['--insecure']
    return [
      _BIN / 'flower-supernode', f'--superlink=127.0.0.1:{self.port}', f'--port={free_port()}',
      '--node-config', config, *flags]

  def kill(self, name: str, number: int = signal.SIGKILL) -> None:
    """Ends a process with all that it has started."""
    process = self.processes.pop(name)
    try:
      os.killpg(process.pid, number)
    except ProcessLookupError:
      pass
    process.wait()

  def run(self, app: Path, seconds: float, overrides: Sequence[str] = ()) -> str:
    """Runs a Flower app to its end -> what it printed."""
    process = self.begin(app, overrides)
    try:
      process.wait(seconds)
    except subprocess.TimeoutExpired:
      raise RuntimeError(f'{app}: not finished after {seconds:.0f} s:\n{self.log("run")}') from None
    return self.log('run')

  def begin(self, app: Path, overrides: Sequence[str] = ()) -> subprocess.Popen:
    """Starts a Flower app; the process ends with the run. Its output is that of the ServerApp."""
    words = [word for override in overrides for word in ('--run-config', override)]
    return self._start('run', 0, [_BIN / 'flwr', 'run', app, LINK, '--stream', *words])

  def alive(self, name: str) -> bool:
    """True; raises RuntimeError with its last words where the process has ended."""
    if self.processes[name].poll() is not None:
      raise RuntimeError(f'{name} ended: {self.log(name)[-2000:]}')
    return True

  def log(self, name: str) -> str:
    path = self.folder / f'{name}.log'
    return path.read_text(errors='replace') if path.exists() else ''

  def start(self, name: str, command: Sequence) -> subprocess.Popen:
    """Starts another process that ends with these, such as a site's."""
    return self._start(name, 0, command)

  def _home(self, number: int) -> Path:
    return self.folder / f'home_{number}'

  def _start(self, name: str, number: int, command: Sequence) -> subprocess.Popen:
    """Starts a process with a Flower home of its own, in a process group of its own."""
    if name in self.processes:
      self.kill(name)
    with (self.folder / f'{name}.log').open('ab') as log:
      self.processes[name] = subprocess.Popen(
        [str(word) for word in command], stdout=log, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL, start_new_session=True,
        env=self._environment | {'FLWR_HOME': str(self._home(number))})
    return self.processes[name]

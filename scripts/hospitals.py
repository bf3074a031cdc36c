"""A small study simulated, and the same between real processes over Flower on this machine.

    python scripts/hospitals.py --out=hospitals.json
    python scripts/hospitals.py --checks=equal --presets=fed_medlora,int8 --out=hospitals.json

Needs the extra `deploy`. Processes are a SuperLink, a SuperNode and a site's process for each of
two sites, and those that Flower starts. Checks:
  equal      adapters within 1e-6 of the simulation's, and the ledger's bytes, for every preset
  restarted  the server is killed after round 1 and goes on
  killed     a site's process is killed while it trains: it misses that round, and not the next
  keys       the same by TLS, with registered keys; a SuperNode with another key is sent away
  overhead   seconds that a round's messages take, beside a Flower app that returns them untouched
FILE gets what was measured; the exit status is 1 when a check failed.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from chaos import make_model

from benchmarks import flower_overhead
from benchmarks.flower_net import Net, wait_for
from fedmedjax.deploy import app

ROOT = Path(__file__).resolve().parent.parent
SITES = ('synthetic_icu', 'synthetic_dictation')
# name -> what it changes in the study below. The last one is short, for CI.
PRESETS: Mapping[str, Mapping[str, object]] = {
  'fed_medlora': {}, 'fed_medlora_plus': {}, 'fed_medlora_peer': {}, 'fedsa_lora': {},
  'scaffold': {}, 'int8': {'fed.preset': 'fed_medlora', 'fed.outbound': 'int8'},
  'short': {
    'fed.preset': 'scaffold', 'fed.rounds': 1, 'fed.learner': 'tagger', 'tagger.width': 16,
    'tagger.buckets': 64, 'model.path': ''}}
STUDY = {
  'data.sites': SITES, 'data.external': (), 'data.validation_examples': 6,
  'data.max_train_notes': 6, 'data.max_length': 256, 'fed.rounds': 2, 'fed.local_steps': 2,
  'fed.batch_size': 2, 'fed.chunk': 1, 'lora.rank': 2, 'lora.targets': ('q_proj', 'v_proj'),
  'model.matmul': 'float32', 'eval.max_examples': 1, 'eval.zero_shot': False,
  'eval.bootstrap_samples': 2, 'eval.max_new_ratio': 0.01, 'eval.batch_size': 1,
  'log.steps': False, 'report.ablation': False}
# A simulation tells every number. A site would keep those of fewer than 5 examples.
POLICY = 'smallest_count = 0\n'
TOLERANCE = 1e-6
CHECKS = ('equal', 'restarted', 'killed', 'keys', 'overhead')
# Seconds that one run may take, and a site's process until it listens.
_RUN, _SITE = 600.0, 180.0


def words(study: Mapping[str, object]) -> list[str]:
  """A study as flags; --config.fed.preset goes first, since it changes others."""
  keys = sorted(study, key=lambda key: (key != 'fed.preset', key))
  return ['--config=fedmedjax:quickstart', *(f'--config.{key}={study[key]}' for key in keys)]


def study_of(preset: str, model: Path, **changes: object) -> dict[str, object]:
  named = {key.replace('__', '.'): value for key, value in changes.items()}
  return {'fed.preset': preset} | STUDY | {'model.path': str(model)} | PRESETS[preset] | named


class Simulation:
  """The study in one program, beside whatever else goes on; it ends with the net at the latest."""

  def __init__(self, net: Net, study: Mapping[str, object], workdir: Path):
    self.net, self.workdir = net, workdir
    self.process = net.start('simulation', [
      sys.executable, '-m', 'fedmedjax.main', *words(study), f'--workdir={workdir}'])

  def finished(self) -> Path:
    """Its workdir, once it has ended; RuntimeError where it failed."""
    if self.process.wait(_RUN):
      raise RuntimeError(f'the simulation failed: {self.net.log("simulation")[-3000:]}')
    return self.workdir


class Deployment:
  """One study on a net: its app, and the processes of its sites."""

  def __init__(self, net: Net, folder: Path, study: Mapping[str, object], deadline: float = 300.0):
    self.net, self.folder = net, folder
    self.app, self.workdir = folder / 'app', folder / 'server'
    if app.main(['app', *words(study), f'--output={self.app}', f'--workdir={self.workdir}',
                 f'--deadline={deadline}']):
      raise RuntimeError(f'{self.app} could not be written')
    self.policy = folder / 'policy.toml'
    self.policy.write_text(POLICY)

  def start_site(self, site: str) -> None:
    self.net.start(f'site_{site}', [
      sys.executable, '-m', 'fedmedjax.deploy.site',
      f'--config={self.app / "study" / "config.py"}', f'--site={site}',
      f'--workdir={self.folder / site}', f'--socket={self.net.sites[site]}',
      f'--policy={self.policy}'])

  def start_sites(self) -> None:
    for site in SITES:
      self.start_site(site)
    for site in SITES:
      self.wait_for_site(site)

  def wait_for_site(self, site: str) -> None:
    wait_for(lambda: self.net.alive(f'site_{site}') and self.net.sites[site].exists(),
             f'the process of {site}', _SITE)

  def stop_sites(self) -> None:
    for site in SITES:
      if f'site_{site}' in self.net.processes:
        self.net.kill(f'site_{site}')
        self.net.sites[site].unlink(missing_ok=True)

  def run(self) -> None:
    """The run, to its end."""
    log = self.net.run(self.app, _RUN)
    if 'raised an exception' in log or not (self.workdir / 'summary.json').exists():
      raise RuntimeError(f'the server did not finish:\n{log[-4000:]}')

  @property
  def lines(self) -> list[dict]:
    path = self.workdir / 'metrics.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def adapters(folder: Path) -> dict[str, dict[str, np.ndarray]]:
  """{folder below `folder`: tensors} of the adapters there."""
  return {
    path.parent.relative_to(folder).as_posix(): safetensors.numpy.load_file(path)
    for path in sorted(folder.rglob('adapter_model.safetensors'))}


def largest_difference(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> float:
  """Between two adapters, as a part of the largest value of the first."""
  if one.keys() != other.keys():
    raise RuntimeError(f'tensors differ: {sorted(one.keys() ^ other.keys())}')
  return max(float(np.abs(one[name] - other[name]).max()) for name in one) / max(
    float(np.abs(value).max()) for value in one.values())


def payload(path: Path) -> dict[tuple, tuple[int, int]]:
  """{(round, site, kind, tensor, codec): (bytes down, bytes up)} of a ledger.

  Without frames, and without what it costs that V is at the sites: the simulated server holds it.
  """
  with path.open() as file:
    return {
      tuple(row[name] for name in ('round', 'site', 'kind', 'tensor', 'codec')):
        (int(row['down']), int(row['up']))
      for row in csv.DictReader(file) if row['kind'] not in ('message', 'query')}


def compared(simulated: Path, deployed: Deployment) -> dict:
  """What a check of one study says: {'difference', 'bytes', 'frame_bytes', 'equal'}."""
  ours = adapters(simulated / 'adapter')
  theirs = adapters(deployed.workdir / 'adapter')
  for site in SITES:
    theirs |= dict.fromkeys([site], *adapters(deployed.folder / site).values())
  shared = ours.keys() & theirs.keys()
  # Where sites keep leaves to themselves, each writes its own adapter and the server none for it.
  if not shared or not (set(SITES) <= shared or '.' in shared):
    raise RuntimeError(f'adapters: {sorted(ours)} simulated, {sorted(theirs)} deployed')
  difference = max(largest_difference(ours[name], theirs[name]) for name in shared)
  told, counted = (payload(one / 'ledger.csv') for one in (simulated, deployed.workdir))
  differing = sorted(
    key for key in told.keys() | counted.keys() if told.get(key) != counted.get(key))
  with (deployed.workdir / 'ledger.csv').open() as file:
    rows = list(csv.DictReader(file))
  frames, asked = (
    sum(int(row[name]) for row in rows if row['kind'] == kind for name in names)
    for kind, names in (('message', ('frame_down', 'frame_up')), ('query', ('down', 'up'))))
  summary = json.loads((deployed.workdir / 'summary.json').read_text())
  return {
    'difference': difference, 'adapters': sorted(shared), 'warnings': summary['warnings'],
    'bytes': sum(map(sum, counted.values())), 'query_bytes': asked, 'frame_bytes': frames,
    'unequal_rows': [','.join(key) for key in differing[:5]],
    'passed': difference <= TOLERANCE and not differing}


def equal(net: Net, folder: Path, model: Path, preset: str) -> dict:
  """The same study, simulated and deployed."""
  study = study_of(preset, model)
  deployed = Deployment(net, folder / preset, study)
  simulation = Simulation(net, study, folder / preset / 'simulated')
  try:
    deployed.start_sites()
    begun = time.monotonic()
    deployed.run()
    seconds = time.monotonic() - begun
  finally:
    deployed.stop_sites()
  return compared(simulation.finished(), deployed) | {'seconds': seconds}


def restarted(net: Net, folder: Path, model: Path) -> dict:
  """The SuperLink is killed, and the ServerApp with it, when round 1 is on disk."""
  study = study_of('scaffold', model, fed__rounds=3)
  deployed = Deployment(net, folder / 'restarted', study)
  simulation = Simulation(net, study, folder / 'restarted' / 'simulated')
  try:
    deployed.start_sites()
    net.begin(deployed.app)
    wait_for(lambda: deployed.lines, 'round 1', _RUN)
    net.kill('link')
    net.kill('run')
    held = len(deployed.lines)
    net.start_link()
    deployed.run()
  finally:
    deployed.stop_sites()
  return compared(simulation.finished(), deployed) | {'rounds_before': held}


def killed(net: Net, folder: Path, model: Path) -> dict:
  """A site's process is killed while it has a message of round 2, and started again."""
  # So many steps that a round takes seconds, and the kill comes before its end.
  study = study_of('fed_medlora', model, fed__rounds=4, fed__local_steps=200)
  deployed, victim = Deployment(net, folder / 'killed', study), SITES[1]
  try:
    deployed.start_sites()
    process = net.begin(deployed.app)
    wait_for(lambda: deployed.lines, 'round 1', _RUN)
    # Killed earlier, it could be back before its relay asks for it, and miss nothing.
    wait_for(lambda: 'round 2: trains' in net.log(f'site_{victim}'), 'training in round 2', _RUN)
    net.kill(f'site_{victim}')
    deployed.start_site(victim)
    process.wait(_RUN)
  finally:
    deployed.stop_sites()
  steps = [dict(zip(line['sites'], line['steps'], strict=True)) for line in deployed.lines]
  lost = [number + 1 for number, row in enumerate(steps) if not row.get(victim)]
  others = all(row.get(SITES[0]) for row in steps)
  return {'rounds': len(steps), 'rounds_without_it': lost,
          'passed': len(steps) == 4 and lost == [2] and others}


def keys(folder: Path, model: Path) -> dict:
  """A short study by TLS, between sites that are known by their keys."""
  subprocess.run(
    ['bash', ROOT / 'scripts' / 'flower_keys.sh', folder / 'keys', '127.0.0.1', *SITES, 'thief'],
    check=True, stdout=subprocess.DEVNULL)
  sockets = {site: folder / f'{site}.sock' for site in SITES}
  with Net(folder / 'net', sockets, folder / 'keys') as net:
    net.start('thief', net.node_command(SITES[0], str(folder / 'keys' / 'thief.key')))
    found = equal(net, folder, model, 'short')
    # What a SuperNode says once it is let in; by now it has had the time.
    tried, let_in = ('SuperNode' in net.log('thief'), 'SuperNode ID' in net.log('thief'))
    said = net.log('thief').strip().splitlines()[-6:]
  return found | {
    'thief_let_in': let_in, 'thief_said': said,
    'passed': found['passed'] and tried and not let_in}


def overhead(folder: Path, sizes: str, repeats: int) -> dict:
  """See `benchmarks/flower_overhead.py`."""
  sockets = {site: folder / f'{site}.sock' for site in flower_overhead.SITES}
  flower_overhead.write_app(folder / 'app')
  out = folder / 'out.json'
  with Net(folder / 'net', sockets) as net:
    for site, path in sockets.items():
      net.start(f'site_{site}', [sys.executable, flower_overhead.__file__, path])
    log = net.run(folder / 'app', 3 * _RUN, [
      f'out="{out}"', f'sizes="{sizes}"', f'repeats={repeats}'])
  if not out.exists():
    raise RuntimeError(log[-3000:])
  rows = json.loads(out.read_text())
  return {'rows': rows, 'passed': all(row['beyond_seconds'] <= 2.0 for row in rows)}


def carried_out(options: argparse.Namespace, folder: Path) -> dict:
  """{check: what it found}."""
  found: dict[str, dict] = {}

  def add(name: str, value: dict) -> None:
    found[name] = value
    print(f'{name}: {json.dumps(value)}', flush=True)

  sockets = {site: folder / f'{site}.sock' for site in SITES}
  if options.presets != ['short'] or set(options.checks) != {'equal'}:
    make_model(folder / 'model')
  if set(options.checks) - {'keys', 'overhead'}:
    with Net(folder / 'net', sockets, database=True) as net:
      for preset in options.presets if 'equal' in options.checks else ():
        add(f'equal {preset}', equal(net, folder, folder / 'model', preset))
      for check in (restarted, killed):
        if check.__name__ in options.checks:
          add(check.__name__, check(net, folder, folder / 'model'))
  if 'keys' in options.checks:
    (folder / 'keys').mkdir()
    add('keys', keys(folder / 'keys', folder / 'model'))
  if 'overhead' in options.checks:
    (folder / 'overhead').mkdir()
    add('overhead', overhead(folder / 'overhead', options.sizes, options.repeats))
  return found


def among(allowed: tuple[str, ...]):
  def read(text: str) -> list[str]:
    chosen = text.split(',')
    if wrong := set(chosen) - set(allowed):
      raise argparse.ArgumentTypeError(f'{sorted(wrong)}: allowed are {", ".join(allowed)}')
    return chosen
  return read


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', type=Path, required=True)
  parser.add_argument('--checks', type=among(CHECKS), default=list(CHECKS))
  parser.add_argument(
    '--presets', type=among(tuple(PRESETS)),
    default=[name for name in PRESETS if name != 'short'])
  parser.add_argument('--sizes', default='20,168', help='megabytes of an adapter')
  parser.add_argument('--repeats', type=int, default=3)
  options = parser.parse_args()
  import flwr
  with tempfile.TemporaryDirectory(prefix='hospitals') as folder:
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(Path(folder) / 'xla'))
    # Several processes compute at once, and have to compute the same.
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    found = carried_out(options, Path(folder))
  failed = sorted(name for name, value in found.items() if not value['passed'])
  options.out.write_text(json.dumps({'flower': flwr.__version__, **found}, indent=1))
  print(f'Flower {flwr.__version__}: {len(found)} checks, failed: {failed or "none"}')
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main())

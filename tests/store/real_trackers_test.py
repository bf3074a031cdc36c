"""W&B, MLflow and trackio themselves, offline: what they hold of a run that was gone on with.

They need an environment of their own, which `bash scripts/proof.sh trackers` makes in
.venv-trackers (the extra `trackers`, 200 MB beside the package's own packages); FEDMEDJAX_TRACKERS
names another Python that has them. `trackers_test.py` does the same with stand-ins.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = '''
import sys
from pathlib import Path
from invented_run import entry, line
from fedmedjax.store import trackers

name, workdir, sites = sys.argv[1], Path(sys.argv[2]), ('icu', 'ward')
lines = [line(number, sites) for number in (1, 2, 3)]
trackers.check_installed((name,))
workdir.mkdir(exist_ok=True)

def used():
  settings = {'fed.rounds': 3, 'data.sites': ['icu']}
  return trackers.started((name,), workdir, settings, sites, sys.exit)

try:
  with used() as tracker:
    tracker.restart([])
    tracker.add(lines[:1])
    tracker.add(lines[:2])
    raise KeyboardInterrupt
except KeyboardInterrupt:
  pass
with used() as tracker:
  tracker.restart(lines[:1])
  tracker.add(lines[:2])
  tracker.add(lines)
  tracker.finish(lines, {'scores': {'icu': {'ner': entry(0.5)}}})
'''
# Each prints {tag: [[round, value], ...]} of the one run that there is, from the library's store.
READ = {
  'mlflow': '''
import json, sys
from mlflow import MlflowClient
client = MlflowClient(f'sqlite:///{sys.argv[1]}/mlflow/runs.db')
run, = client.search_runs([client.get_experiment_by_name('fedmedjax').experiment_id])
assert run.info.status == 'FINISHED' and run.data.params['fed.rounds'] == '3'
print(json.dumps({tag: [[one.step, one.value] for one in client.get_metric_history(
  run.info.run_id, tag)] for tag in run.data.metrics}))
''',
  'trackio': '''
import json, sys
import trackio
run, = trackio.Api().runs('fedmedjax')
found = {}
for row in trackio.sqlite_storage.SQLiteStorage.get_logs('fedmedjax', run.name):
  for tag, value in row.items():
    if tag not in ('timestamp', 'step'):
      found.setdefault(tag, []).append([row['step'], value])
print(json.dumps(found))
''',
  'wandb': '''
import glob, json, struct, sys
from wandb.proto import wandb_internal_pb2

def records(data, block=32768):
  # LevelDB's log format: 7 bytes of a header, then pieces, each with checksum, length and kind.
  at, held = 7, b''
  while at + 7 <= len(data):
    if block - at % block < 7:
      at += block - at % block
      continue
    _, size, kind = struct.unpack('<IHB', data[at:at + 7])
    held, at = held + data[at + 7:at + 7 + size], at + 7 + size
    if kind in (1, 4):
      yield held
      held = b''

found, ids = {}, set()
for path in sorted(glob.glob(f'{sys.argv[1]}/wandb/offline-run-*/*.wandb')):
  for data in records(open(path, 'rb').read()):
    record = wandb_internal_pb2.Record()
    record.ParseFromString(data)
    if record.WhichOneof('record_type') == 'run':
      ids.add(record.run.run_id)
    numbers = {item.key or item.nested_key[0]: json.loads(item.value_json)
               for item in record.history.item}
    for tag, value in numbers.items():
      if not tag.startswith('_'):
        found.setdefault(tag, []).append([numbers['_step'], value])
    for item in record.summary.update:
      tag = item.key or item.nested_key[0]
      if tag.startswith('f1/'):
        found[tag] = [[3, json.loads(item.value_json)]]
assert len(ids) == 1, ids
# Folders that are begun within a second have no order.
print(json.dumps({tag: sorted(points) for tag, points in found.items()}))
'''}


def _python() -> str:
  """A Python that has the libraries, or a skip."""
  own = ROOT / '.venv-trackers' / 'bin' / 'python'
  python = os.environ.get('FEDMEDJAX_TRACKERS') or (str(own) if own.exists() else sys.executable)
  done = subprocess.run(
    [python, '-c', 'import importlib.util as u; '
     'assert all(map(u.find_spec, ("wandb", "mlflow", "sqlalchemy", "alembic", "trackio")))'],
    capture_output=True)
  if done.returncode:
    assert not os.environ.get('FEDMEDJAX_REQUIRE_TRACKERS'), 'a library of trackers is absent'
    pytest.skip('the extra trackers is not installed: bash scripts/proof.sh trackers')
  return python


@pytest.mark.slow
@pytest.mark.parametrize('name', sorted(READ))
def test_the_library_holds_every_round_once(tmp_path, name):
  workdir = tmp_path / 'a run'
  # Accounts of the one who runs the tests are not asked.
  env = {key: value for key, value in os.environ.items()
         if not key.startswith(('WANDB', 'MLFLOW', 'TRACKIO'))} | {
    'PYTHONPATH': f'{ROOT}:{ROOT / "tests" / "helpers"}', 'HOME': str(tmp_path),
    'TRACKIO_DIR': str(tmp_path / 'trackio')}

  def run(program, *words):
    done = subprocess.run(
      [_python(), '-c', program, *words], cwd=tmp_path, env=env, capture_output=True, text=True,
      timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout

  run(PROGRAM, name, str(workdir))
  found = json.loads(run(READ[name], str(workdir)).splitlines()[-1])
  assert found['round/seconds'] == [[1, 1.5], [2, 1.5], [3, 1.5]]
  assert [number for number, _ in found['train_loss/icu']] == [1, 2, 3]
  assert found['f1/icu/ner/strict'] == [[3, 0.5]]
  left = {path.name for path in tmp_path.iterdir()} - {'a run', '.cache', '.config'}
  assert left <= {'trackio', '.netrc'}, left

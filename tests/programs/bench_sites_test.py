"""The benchmarks of rounds over sites on a tiny model: what they write, and whom they race."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'scripts'))
import bench_peers  # noqa: E402
import bench_sites  # noqa: E402

from benchmarks import interleaved, site_rounds  # noqa: E402
from benchmarks.site_rounds import Round  # noqa: E402


@pytest.fixture(autouse=True)
def small(monkeypatch):
  """The tests' own threads."""
  monkeypatch.setattr(interleaved, 'pin_threads', lambda count: 2)
  monkeypatch.setattr(interleaved, '_SETTLE_SECONDS', 0.0)


@pytest.fixture
def command(tiny_folder):
  """command(script, *flags) -> exit status."""
  return lambda script, *flags: script.main([
    'script', f'--model={tiny_folder}', '--site=synthetic_icu', '--repeats=1', '--steps=1',
    '--max_length=96', *flags])


@pytest.mark.slow
def test_sites_chunks_and_skews(command, tmp_path, monkeypatch, capsys):
  """Two sites, of which the loops do one: they agree with the compiled round, and are scaled by 2.
  Sizes by k^-2, both at once with a halving, waste less than with everyone waiting. What the file
  holds is not measured again, nor mixed with other work."""
  out, plot = tmp_path / 'sites.json', tmp_path / 'scaling.svg'
  asked = (
    bench_sites, '--sites=2', '--chunk=0', '--loop_sites=1', '--part_sites=2', '--chunks=0',
    '--skews=2', '--skew_chunk=0', f'--out={out}')
  assert command(*asked, '--batch=32', f'--plot={plot}') == 0
  written = out.read_bytes()
  with monkeypatch.context() as patch:
    for name in ('by_sites', 'by_chunk', 'by_skew'):
      patch.setattr(bench_sites, name, lambda *_: pytest.fail('measured again'))
    assert command(*asked, '--batch=32') == 0
  assert out.read_bytes() == written
  capsys.readouterr()
  # A longer list measures what is missing, and nothing twice.
  with monkeypatch.context() as patch:
    patch.setattr(bench_sites, 'by_chunk', lambda model, values, wanted: [
      {'chunk': int(one), 'sites': 2, 'ours_seconds_per_round': 1.0} for one in wanted])
    longer = tmp_path / 'longer.json'
    longer.write_bytes(written)
    flags = [flag for flag in asked[1:] if not flag.startswith(('--chunks', '--out'))]
    assert command(bench_sites, *flags, '--batch=32', '--chunks=2,0', f'--out={longer}') == 0
    rows = json.loads(longer.read_text())['by_chunk']
    assert [row['chunk'] for row in rows] == [0, 2] and rows[1]['ours_seconds_per_round'] == 1.0
    longer.write_text(written.decode().replace('"cores_used": 2', '"cores_used": 64'))
    capsys.readouterr()
    assert command(bench_sites, *flags, '--batch=32', f'--out={longer}') == 2
    assert "'cores_used': 64" in capsys.readouterr().err
  assert command(*asked, '--batch=16') == 2
  assert 'was measured with --batch=32, this command has 16' in capsys.readouterr().err
  found = json.loads(out.read_text())
  row, = found['by_sites']
  assert row['loops_scaled_from_sites'] == 1
  for name in ('ours_loop', 'peer_peft'):
    key = f'{name}_scaled_from_1_sites_seconds'
    assert row[f'{name}_seconds_per_round'] == pytest.approx(found[f'{key}_2_sites'][0])
    assert found[f'{key}_per_site_2_sites'] == pytest.approx(found[f'{key}_2_sites'][0] / 2)
  assert found['ratio_to_peft_scaled_from_1_sites_2_sites'] == pytest.approx(
    row['peer_peft_seconds_per_round'] / row['ours_seconds_per_round'])
  assert row['ours_peak_bytes'] > 49_152 * 16 * 4   # the embedding at least
  chunk, = found['by_chunk']
  assert chunk['chunk'] == 0 and chunk['ours_seconds_per_round'] > 0
  skew, = found['by_skew']
  # Four fifths of the sentences and one: with everyone waiting 5 of 8 steps are useful.
  assert skew['padded_useful_step_share'] == pytest.approx(5 / 8, abs=0.05)
  assert skew['useful_step_share'] >= 0.9 and skew['local_steps'] > skew['longest_steps']
  drawn = plot.read_text()
  assert all(text in drawn for text in (
    'torch + PEFT loop', 'scaled from fewer sites', 'useful steps', 'MiB at the peak'))
  plot.unlink()
  assert bench_sites.main(['script', f'--redraw={out}', f'--plot={plot}']) == 0
  assert plot.read_text() == drawn


def test_losses_of_sites_that_both_did_must_agree():
  own = np.array([2.0, 3.0, 5.0])
  site_rounds.check_losses({'ours': Round(own), 'peer': Round(np.array([2.0019, 3.0]))})
  for wrong in ([2.0, 3.004], [2.0, np.nan]):
    with pytest.raises(RuntimeError, match='peer and ours do not train alike: .* site 1'):
      site_rounds.check_losses({'ours': Round(own), 'peer': Round(np.array(wrong))})


def test_flower_must_answer_and_agree():
  """Mean loss of sizes (1, 3): 2.5. Planted: a site that failed, and another loss."""
  one = SimpleNamespace(turn=SimpleNamespace(weights=np.array([1.0, 3.0])))
  ours = Round(np.array([1.0, 3.0]))
  bench_peers.check([(2, 2.501), (2, 2.0)], one, ours, 2)
  with pytest.raises(RuntimeError, match=r'by round: \[2, 1\]; 2 in each of 2'):
    bench_peers.check([(2, 2.5), (1, 2.0)], one, ours, 2)
  with pytest.raises(RuntimeError, match='round 1 is 2.00000 and 2.50000'):
    bench_peers.check([(2, 2.0), (2, 2.5)], one, ours, 2)


@pytest.mark.slow
def test_flowers_simulation(tiny_folder, tmp_path):
  """In a process of its own: Flower's imports warn."""
  out = tmp_path / 'peers.json'
  subprocess.run(
    [sys.executable, ROOT / 'scripts' / 'bench_peers.py', f'--model={tiny_folder}', '--sites=2',
     '--site=synthetic_icu', '--repeats=1', '--steps=1', '--max_length=96', f'--out={out}'],
    check=True, cwd=ROOT, env=os.environ | {'PYTHONPATH': str(ROOT)})
  found = json.loads(out.read_text())
  assert found['ratio_to_flower_2_sites'] == pytest.approx(
    found['peer_flower_seconds_2_sites'][0] / found['ours_seconds_2_sites'][0])
  assert found['peer_flower_compile_seconds_2_sites'] > 0


def test_a_dry_run_does_not_touch_what_was_measured(tmp_path, capsys):
  out = tmp_path / 'sites.json'
  out.write_text('{}')
  assert bench_sites.main(['script', '--dry_run', f'--out={out}']) == 2
  assert 'is there already; a dry run takes another name' in capsys.readouterr().err
  assert out.read_text() == '{}'


@pytest.mark.parametrize('script, flag, message', [
  (bench_sites, '--sites=0', '--sites=0: integers >= 1'),
  (bench_sites, '--skews=x', '--skews=x: numbers >= 0'),
  (bench_sites, '--redraw=nowhere.json', 'a file that --out wrote'),
  (bench_sites, '--plot=nowhere/x.svg', 'its folder is not there'),
  (bench_peers, '--sites=1', '--sites'),
])
def test_flags_are_checked_first(script, flag, message, capsys):
  assert script.main(['script', flag]) == 2
  assert message in capsys.readouterr().err

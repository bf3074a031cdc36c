"""Rounds of a small language model in float64, in one of several processes or in a single one.

    python scripts/hosts_float64.py --out=alone.safetensors
    python scripts/hosts_float64.py --out=two.safetensors --num_processes=2 \
      --coordinator=localhost:12345 --process_id=0

A run of the program cannot be in float64: adapters, messages and checkpoints are float32 by their
formats, and JAX_ENABLE_X64 is refused. So this calls what it consists of: the round function over
the mesh of all processes, each of which has the examples of its own slots alone. Two methods, three
rounds of six sites with unlike numbers of steps: Fed-MedLoRA with AdamW, and SCAFFOLD with a server
that has a memory. FILE gets the adapter's leaves after each round; scripts/hosts.py compares them.
"""

import argparse
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from jax.sharding import NamedSharding, PartitionSpec

from fedmedjax import tree
from fedmedjax.experiment import meshes
from fedmedjax.fed import rules
from fedmedjax.fed.local import adamw, sgd
from fedmedjax.fed.round import federated_algorithm
from fedmedjax.fed.sites import spread_rows, spread_state, spread_vmap
from fedmedjax.fed.slots import make_slots, slot_map
from fedmedjax.fed.types import LocalData
from fedmedjax.model.llama import Llama, LlamaConfig
from fedmedjax.model.lora import LoraConfig, init_adapter
from fedmedjax.model.loss import packed_attention, packed_loss
from fedmedjax.runtime import launch
from fedmedjax.types import Batch

CONFIG = LlamaConfig(
  vocab_size=96, hidden_size=24, intermediate_size=40, num_layers=2, num_heads=4, num_kv_heads=2,
  head_dim=8, rms_norm_eps=1e-5, rope_theta=1e4, max_position_embeddings=128,
  tie_word_embeddings=False)
LORA = LoraConfig(4, 8.0, ('q_proj', 'down_proj'))
STEPS = np.array([2, 1, 3, 2, 1, 3])
SITES, ROUNDS = len(STEPS), 3
METHODS = {
  'fed_medlora': dict(optimizer=adamw(1e-2)),
  'scaffold': dict(
    optimizer=sgd(0.1), rule=rules.control_variates(rate=0.1),
    server_optimizer=optax.adam(1e-2))}


def examples(rows: int = 2, width: int = 12, prefix: int = 5, targets: int = 8) -> Batch:
  """Random tokens of all sites and steps, one example a row: [S, K, ...]."""
  rng, lead = np.random.default_rng(0), (SITES, STEPS.max())
  draw = lambda high, *shape: rng.integers(0, high, (*lead, *shape)).astype(np.int32)  # noqa: E731
  ones = partial(np.ones, dtype=np.int32)
  return Batch(
    prefix=draw(96, prefix), prefix_targets=ones((*lead, 0)), prefix_weight=np.ones((*lead, 0)),
    tokens=draw(96, rows, width),
    positions=prefix + np.arange(width, dtype=np.int32) * ones((*lead, rows, 1)),
    segments=ones((*lead, rows, width)), target_row=draw(rows, targets),
    target_index=draw(width, targets), targets=draw(96, targets),
    target_weight=np.ones((*lead, targets)))


def weights() -> dict:
  """A random base, in float64."""
  ones = np.ones(4, np.int32)
  drawn = Llama(CONFIG, packed_attention).init(
    jax.random.key(3), ones, ones, None, (np.zeros(0, bool), np.ones((1, 4), np.int32)))['params']
  return wide(dict(drawn))


def wide(values):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), values)


def laid_out() -> tuple[LocalData, dict]:
  """What the cohort trains on, and how the round is laid out on the devices that there are."""
  given = LocalData(
    examples(), np.arange(STEPS.max()) < STEPS[:, None], np.arange(1.0, SITES + 1))
  if jax.process_count() == 1:
    return given, {}
  spread = meshes.spread_of(meshes.make_mesh(-1, 1, 1), 0)
  width = -(-SITES // spread.parts)
  slots = make_slots(np.arange(SITES), STEPS, SITES, spread.parts, width)
  here = [group for group, device in enumerate(spread.mesh.devices.flat)
          if device.process_index == jax.process_index()]
  mine = slots.place.reshape(spread.parts, width)[here].reshape(-1)
  placed = NamedSharding(spread.mesh, PartitionSpec(spread.axes))
  batches = jax.tree.map(lambda x: jax.make_array_from_process_local_data(
    placed, x[mine], (len(slots.place), *x.shape[1:])), given.batches)
  return given._replace(batches=batches, slots=slots), {
    'map_sites': slot_map(0, spread, spread_vmap(spread)), 'place': spread_state(spread),
    'by_rows': spread_rows(spread)}


def play() -> dict[str, np.ndarray]:
  """{'scaffold/0/LEAF' and the like: a leaf of the adapter after that round}."""
  given, parts = laid_out()
  base, found = weights(), {}
  start = wide(init_adapter(jax.random.key(1), CONFIG, LORA))
  model = Llama(CONFIG, packed_attention, lora_scale=LORA.scale, dtype=jnp.float64)
  for name, method in METHODS.items():
    algorithm = federated_algorithm(partial(packed_loss, model), SITES, **method, **parts)
    state = algorithm.init(start)
    for number in range(ROUNDS):
      state, _ = algorithm.round(
        state, base, given, np.arange(SITES), None, jax.random.key(number))
      for path, leaf in zip(tree.paths(state.adapter), jax.tree.leaves(state.adapter), strict=True):
        found[f'{name}/{number}/{path}'] = np.ascontiguousarray(leaf)
  return found


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--out', type=Path, required=True)
  parser.add_argument('--coordinator')
  parser.add_argument('--num_processes', type=int)
  parser.add_argument('--process_id', type=int)
  options = parser.parse_args()
  jax.config.update('jax_enable_x64', True)
  together = nullcontext() if options.coordinator is None else launch.together(launch.Launch(
    options.coordinator, options.num_processes, options.process_id, None, 100.0, 300.0))
  with together:
    found = play()
    if not options.process_id:
      safetensors.numpy.save_file(found, options.out)
  return 0


if __name__ == '__main__':
  sys.exit(main())

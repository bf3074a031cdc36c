"""A round of our compiled program beside one of Flower's simulation, over the same sites.

    python scripts/bench_peers.py [--sites=32] [--repeats=3] [--out=FILE.json]
      [--site=maccrobat2020] [--model=width_256] [--batch=4 --steps=2] [--chunk=1] [--dry_run]

Needs the extra `bench`: Flower 1.42 or newer, whose version is named. Flower's FedAvg (all sites a
round, no evaluation) sends each site the adapter; a site is torch and PEFT as in bench_sites.py, in
a process a core (four on a GPU).
Weights, examples and steps are ours, and the first round's mean loss must be ours to 1e-3. Rounds
of both take turns. The start of Ray, its processes and their models is apart:
peer_flower_compile_seconds. --dry_run only lowers our round, for a --model of shapes.
"""

import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from benchmarks import inputs, interleaved, site_rounds
from fedmedjax.experiment.build import load_data
from fedmedjax.runtime.cli import guarded, read_flags
from fedmedjax.runtime.progress import Reporter

# Shared memory of Ray, which otherwise takes a third of the machine.
_STORE_BYTES = 2**28
# Of one GPU, for each of Flower's processes.
_GPU_SHARE = {'cpu': 0.0, 'cuda': 0.25}


def race(
  one: site_rounds.Federation, ours: site_rounds.Compiled, folder: Path, repeats: int,
  threads: int,
) -> dict[str, interleaved.Timing]:
  """Rounds of both in turns; `folder` is what flower_site.write wrote.

  Raises RuntimeError: a site failed, or they do not train alike.
  """
  for name in (
      'FLWR_TELEMETRY_ENABLED', 'RAY_USAGE_STATS_ENABLED', 'RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO'):
    os.environ[name] = '0'
  # Ray forks to start another program at once; jax warns of forks that go on.
  warnings.filterwarnings('ignore', message=r'os\.fork')
  import ray
  from flwr.app import MetricRecord
  from flwr.serverapp import ServerApp
  from flwr.serverapp.strategy import FedAvg
  from flwr.simulation import run_simulation

  from benchmarks import flower_site, torch_peer
  logging.getLogger('flwr').setLevel(logging.ERROR)
  sites, rounds, begun = len(one.turn.weights), [], [time.perf_counter()]
  theirs, own, result = [], [], []
  arrays, config = flower_site.start(folder)

  def metrics(replies, weighted_by: str) -> MetricRecord:
    found = [reply['metrics'] for reply in replies]
    weights = [record[weighted_by] for record in found]
    loss = np.average([record['loss'] for record in found], weights=weights)
    rounds.append((len(found), float(loss)))
    return MetricRecord({'loss': float(loss)})

  def between(*_) -> None:
    """Before the first round of Flower, and after each: ours."""
    theirs.append(time.perf_counter() - begun[0])
    start = time.perf_counter()
    result.append(ours.run())
    own.append(time.perf_counter() - start)
    begun[0] = time.perf_counter()

  server = ServerApp()

  @server.main()
  def main(grid, context):
    FedAvg(
      fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites,
      train_metrics_aggr_fn=metrics,
    ).start(grid, arrays, num_rounds=repeats + 1, train_config=config, evaluate_fn=between)

  run_simulation(
    server, flower_site.app, sites, backend_config={
      'init_args': {
        'num_cpus': threads, 'object_store_memory': _STORE_BYTES, 'log_to_driver': False},
      'client_resources': {'num_cpus': 1, 'num_gpus': _GPU_SHARE[torch_peer.device()]}})
  ray.shutdown()
  check(rounds, one, result[0], repeats + 1)
  # Of Flower: up to round 1, that round, the repeats.
  startup = theirs[0] + theirs[1] - statistics.median(theirs[2:])
  return {
    'ours': interleaved.Timing(own[0] - statistics.median(own[2:]), tuple(own[2:]), result[0]),
    'peer_flower': interleaved.Timing(startup, tuple(theirs[2:]), rounds[0][1])}


def check(
  rounds: list[tuple[int, float]], one: site_rounds.Federation, ours: site_rounds.Round,
  wanted: int,
) -> None:
  """Raises RuntimeError unless every site answered in every round and the first loss is ours.

  Args:
    rounds: of each round of Flower, how many sites answered, and their mean loss.
    wanted: how many rounds there should be.
  """
  sites = len(one.turn.weights)
  if [count for count, _ in rounds] != [sites] * wanted:
    raise RuntimeError(
      f'peer_flower: sites that answered by round: {[count for count, _ in rounds]}; {sites} in '
      f'each of {wanted} were asked')
  own = float(np.average(ours.losses, weights=one.turn.weights))
  if not abs(rounds[0][1] - own) <= interleaved.TOLERANCES['float32'].loss * max(1.0, abs(own)):
    raise RuntimeError(
      f'peer_flower and ours do not train alike: mean loss of round 1 is {rounds[0][1]:.5f} and '
      f'{own:.5f}')


def bench(values: flags.FlagValues, threads: int) -> dict[str, Any]:
  """What --out holds, but for the machine."""
  model = inputs.load(
    values.model, values.dtype, tokenizer=values.tokenizer, abstract=values.dry_run)
  config = inputs.configure(
    values.site, values.task, batch_size=values.batch, steps=values.steps, sites=values.sites,
    data__max_length=values.max_length, model__dtype=values.dtype, fed__chunk=values.chunk)
  one = site_rounds.federation(config, load_data(config, Reporter(), model.base))
  if values.dry_run:
    return {'dry_run': True} | site_rounds.dry_run(one)
  import flwr

  from benchmarks import flower_site, torch_peer
  with tempfile.TemporaryDirectory() as folder:
    flower_site.write(
      Path(folder), one, torch_peer.twin(model, values.dtype, 'cpu'), model.base.name)
    timings = race(one, site_rounds.compiled(one), Path(folder), values.repeats, threads)
  quantities = {
    'seconds_per_round': lambda seconds: seconds,
    'seconds_per_site': lambda seconds: seconds / values.sites}
  interleaved.show(
    f'a round of {values.sites} sites, {values.steps} steps each, {model.base.name}, Flower '
    f'{flwr.__version__}', timings, quantities)
  return interleaved.found(timings, quantities, f'_{values.sites}_sites')


def define(values: flags.FlagValues) -> None:
  inputs.define_flags(values, batch=4)
  values.set_default('model', 'width_256')
  interleaved.define_flags(values, repeats=3)
  flags.DEFINE_integer('steps', 2, 'Local steps of a site.', lower_bound=1, flag_values=values)
  flags.DEFINE_integer('sites', 32, 'Sites.', lower_bound=2, flag_values=values)
  flags.DEFINE_integer('chunk', 1, 'As config.fed.chunk.', lower_bound=0, flag_values=values)


def main(argv: list[str]) -> int:
  def body():
    values = read_flags(argv, define)
    interleaved.check_out(values.out)
    threads = interleaved.pin_threads(values.threads)
    interleaved.write(values.out, bench(values, threads), threads)

  return guarded(body)


if __name__ == '__main__':
  sys.exit(main(sys.argv))

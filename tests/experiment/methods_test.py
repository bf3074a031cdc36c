"""Every row of PRESETS runs two rounds of the quick start's shapes; unsound pairs are refused."""

import jax
import numpy as np
import pytest
from played_rounds import play_rounds
from rich.console import Console

from fedmedjax import tree
from fedmedjax.data import pack
from fedmedjax.data import schedule as schedules
from fedmedjax.data.site import encode_site
from fedmedjax.data.synthetic.cohorts import generate_cohort
from fedmedjax.experiment import communication
from fedmedjax.experiment.build import load_data, prepare
from fedmedjax.experiment.command_line import parse
from fedmedjax.experiment.config import leaves, validate
from fedmedjax.experiment.defaults import PRESETS
from fedmedjax.experiment.lora import widened
from fedmedjax.experiment.refusals import check_method
from fedmedjax.experiment.shipped import ablation, quickstart
from fedmedjax.experiment.types import Data
from fedmedjax.fed.aggregators import AGGREGATORS, SIGNALS
from fedmedjax.fed.round import site_adapter
from fedmedjax.fed.types import LocalData
from fedmedjax.model.files.convert import BaseModel
from fedmedjax.model.llama import Llama, LlamaConfig
from fedmedjax.model.lora import LoraConfig
from fedmedjax.model.loss import packed_attention
from fedmedjax.runtime.progress import Reporter
from fedmedjax.types import InputError

# fed_bert runs in bert_run_test.
TRAINED = [
  name for name, row in PRESETS.items() if row.get('train', True) and 'learner' not in row]


# One for every kind of signal, aggregator, local rule, sharing and server optimiser. What tells
# the others from these is tested by itself in tests/fed.
TYPICAL = {
  'fed_medlora_peer', 'flora', 'fedex_lora', 'lora_fair', 'krum', 'scaffold', 'fedsa_lora',
  'rolora', 'fedadam', 'single_site'}


def shrunk(preset, **fed):
  config = quickstart.get_config(preset)
  config.fed.update({'rounds': 2, 'local_steps': 2, 'batch_size': 4} | fed)
  config.lora.update(rank=4, targets=('q_proj', 'down_proj'))
  config.log.steps = False
  validate(config)
  return config


@pytest.fixture(scope='module')
def data(smollm):
  """Three synthetic sites and a random two-layer model with SmolLM2's tokenizer."""
  shape = LlamaConfig(
    vocab_size=len(smollm.tokenizer), hidden_size=16, intermediate_size=24, num_layers=2,
    num_heads=2, num_kv_heads=1, head_dim=8, rms_norm_eps=1e-5, rope_theta=1e4,
    max_position_embeddings=2048, tie_word_embeddings=True)
  ones = np.ones(4, np.int32)
  params = Llama(shape, packed_attention).init(
    jax.random.key(0), ones, ones, None, (np.zeros(0, bool), np.ones((1, 4), np.int32)))['params']
  sites = [
    encode_site(
      generate_cohort(name), smollm.tokenizer, max_length=120, max_train_notes=6, max_test=1,
      validation_share=0.2, validation_examples=2)
    for name in quickstart.get_config().data.sites]
  base = BaseModel(
    config=shape, params=dict(params), tokenizer=smollm.tokenizer, name='tiny')
  return Data(base, tuple(sites), tuple(sites), ())


def rounds(config, data):
  """(study, last state, metrics of every round)."""
  study = prepare(config, data)
  state, reports = play_rounds(study, config.fed.rounds)
  return study, state, reports


@pytest.mark.parametrize('preset', [
  preset if preset in TYPICAL else pytest.param(preset, marks=pytest.mark.slow)
  for preset in TRAINED])
def test_two_rounds(preset, data):
  # All sites are played in every round.
  study, state, reports = rounds(
    shrunk(preset, **{'buffer': 3} if preset == 'fedbuff' else {}), data)
  for number, metrics in enumerate(reports):
    moves = preset != 'single_site' and not (preset == 'feddpa' and number == 1)
    assert np.isfinite(metrics.train_loss).all() and (metrics.local_norm > 0).all()
    np.testing.assert_allclose(metrics.weights.sum(), 1, atol=1e-5)
    assert (metrics.step_norm > 0) == moves
    if number == 0 and moves:
      assert metrics.step_cosine > 0
    if study.options.adds_aggregate:
      assert metrics.expected_gap <= 1e-4 * max(metrics.step_norm, 1e-30)
    if preset in ('flora', 'fedex_lora', 'ffa_lora'):
      assert metrics.product_gap < 1e-3
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.adapter))


@pytest.mark.slow
def test_steps_in_several_shapes_learn_the_same(data, monkeypatch):
  """Sites one after the other, steps of unlike lengths: what is learnt is what one shape teaches.

  Planted: a bucket computed for steps that it does not hold. Together, sites have one shape.
  """
  monkeypatch.setattr(pack, '_LEAST_SAVED', 1)
  config = shrunk('fed_medlora', chunk=1, batch_size=2)
  config.fed.shapes = 1
  _, plain, reports = rounds(config, data)
  config.fed.shapes = 3
  study, state, found = rounds(config, data)
  shape_buckets = study.schedule.layout.shape_buckets
  batches, _ = schedules.round_arrays(study.schedule, 0)
  held = jax.vmap(jax.vmap(shape_buckets[0].holds))(batches)
  assert len(shape_buckets) == 2 and held.any() and not held.all()
  distance = tree.norm(jax.tree.map(np.subtract, state.adapter, plain.adapter))
  assert distance < 1e-5 * tree.norm(plain.adapter)
  for ours, theirs in zip(found, reports, strict=True):
    np.testing.assert_allclose(ours.train_loss, theirs.train_loss, rtol=1e-5)
  with monkeypatch.context() as patch:
    patch.setattr(pack, 'in_bucket', lambda shape, batch: batch.tokens.sum() >= 0)
    missed = rounds(config, data)[2]
    assert not np.allclose(missed[0].train_loss, reports[0].train_loss, rtol=1e-4)
  config.fed.chunk = 0
  given = (
    study.algorithm.init(study.trainable.adapter), study.trainable.base,
    LocalData(*schedules.round_arrays(study.schedule, 0), study.schedule.weights),
    np.arange(len(study.schedule.weights)), study.validation, jax.random.key(0))
  branches = [
    one.algorithm.round.lower(*given).as_text().count('stablehlo.case')
    for one in (study, prepare(config, data))]
  assert branches == [1, 0]


def test_steps_of_a_tagger_in_groups_learn_the_same():
  """Four sites, two at once, steps of 8 windows three at a time: in three groups of 3, 3 and 2."""
  config = ablation.get_config()
  config.data.partition.sites = 4
  config.fed.update(rounds=2, local_steps=3, chunk=2)
  data = load_data(config, Reporter(Console(quiet=True)))
  whole, plain, reports = rounds(config, data)
  config.fed.micro_batch = 8
  assert _program(prepare(config, data)) == _program(whole)
  config.fed.micro_batch = 3
  study, state, found = rounds(config, data)
  assert study.schedule.layout.groups == 3 and whole.schedule.layout.groups == 1
  distance = tree.norm(jax.tree.map(np.subtract, state.adapter, plain.adapter))
  assert 0 < distance < 1e-5 * tree.norm(plain.adapter)
  for ours, theirs in zip(found, reports, strict=True):
    np.testing.assert_allclose(ours.train_loss, theirs.train_loss, rtol=1e-5)
    np.testing.assert_allclose(ours.validation_loss, theirs.validation_loss, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('fed', [
  {'chunk': 1, 'shapes': 2, 'ranks': (1, 2, 4)}, {'chunk': 2, 'loss_on': 'all'}])
def test_steps_in_groups_learn_the_same(fed, data, monkeypatch):
  """Steps of 4 examples two at a time: adapter, losses and weights are those of whole steps, with
  mixed ranks, several shapes and sites one by one, and with two sites at once. A group as large as
  the step is no group: the very program of before."""
  monkeypatch.setattr(pack, '_LEAST_SAVED', 1)
  config = shrunk('fed_medlora_plus', **fed)
  whole, plain, reports = rounds(config, data)
  for size in (4, 1000):
    config.fed.micro_batch = size
    assert _program(prepare(config, data)) == _program(whole)
  config.fed.micro_batch = 2
  study, state, found = rounds(config, data)
  layout = study.schedule.layout
  assert layout.groups == 2 and layout.shape_buckets
  distance = tree.norm(jax.tree.map(np.subtract, state.adapter, plain.adapter))
  assert 0 < distance < 1e-5 * tree.norm(plain.adapter)
  for ours, theirs in zip(found, reports, strict=True):
    np.testing.assert_allclose(ours.train_loss, theirs.train_loss, rtol=1e-5)
    np.testing.assert_allclose(ours.validation_loss, theirs.validation_loss, rtol=1e-5)
    np.testing.assert_allclose(ours.weights, theirs.weights, rtol=1e-4)


def _program(study) -> str:
  """The round before it is compiled."""
  sites = np.arange(len(study.schedule.weights))
  return study.algorithm.round.lower(
    study.algorithm.init(study.trainable.adapter), study.trainable.base,
    LocalData(*schedules.round_arrays(study.schedule, 0), study.schedule.weights), sites,
    study.validation, jax.random.key(0)).as_text()


def test_mixed_ranks_on_a_language_model(data):
  """Ranks 1, 2, 4 with HetLoRA: every site learns and the adapter stays finite."""
  _, state, reports = rounds(shrunk('hetlora', ranks=(1, 2, 4)), data)
  assert (reports[0].update_norm > 0).all()
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.adapter))


@pytest.mark.parametrize('preset, flags, message', [
  ('scaffold', ['local_optimizer=adamw'], "SCAFFOLD reads the mean gradient"),
  ('scaffold', ['size_power=1.0'], 'the plain mean whatever the'),
  ('scaffold', ['sharing=alternating'], 'stale'),
  ('scaffold', ['ranks=(4,8,16)'], 'unlike scales'),
  ('scaffold', ['aggregator=refactorised'], 'this aggregator replaces them'),
  ('scaffold', ['aggregator=median'], 'under a mean of the updates'),
  ('scaffold', ['aggregator=krum'], 'under a mean of the updates'),
  ('scaffold', ['ema=0.5'], 'sites weigh the same'),
  ('feddyn', ['ema=0.5'], 'sites weigh the same'),
  ('uniform', ['ema=0.5'], 'sites weigh the same'),
  ('feddyn', ['aggregator=trimmed_mean'], 'under a mean of the updates'),
  ('feddyn', ['aggregator=clipped_mean'], 'under a mean of the updates'),
  ('feddyn', ['aggregator=geometric_median'], 'under a mean of the updates'),
  ('feddyn', ['server_learning_rate=0.5'], 'gives the next adapter itself'),
  ('feddyn', ['server_optimizer=fedadam'], 'gives the next adapter itself'),
  ('feddyn', ['server_optimizer=fedavgm'], 'gives the next adapter itself'),
  ('single_site', ['rule=fedprox'], 'pull towards what is shared'),
  ('centralised', ['sharing=nothing'], 'pooled training has one site'),
  ('fedsa_lora', ['loss_power=1.0'], "the server's B stays at zero"),
  ('krum', ['faulty=1'], '2 f + 3 sites'),
  ('multi_krum', ['kept=4'], 'at most n - f'),
  ('median', ['loss_power=1.0'], 'choose their own weights'),
  ('median', ['ranks=(4,8,16)'], 'votes for 0'),
  ('flexlora', ['sharing=only_b'], 'needs both factors'),
  ('flora', ['server_optimizer=fedadam'], 'gives the next adapter itself'),
  ('fedsvd', ['sharing=only_b'], 'writes A anew'),
  ('fedsvd', ['sharing=only_a'], 'writes A anew'),
  ('fedsvd', ['server_optimizer=fedavgm'], 'gives the next adapter itself'),
  ('fedsvd', ['error_feedback=True'], 'replaces by others'),
  ('scaffold', ['aggregator=orthogonalised', 'sharing=served_a'], 'this aggregator replaces them'),
  ('scaffold', ['aggregator=aligned'], 'this aggregator replaces them'),
  ('fedrot_lora', ['ranks=(4,8,16)'], 'need one rank'),
  ('fedrot_lora', ['sharing=only_b'], 'needs both factors'),
  ('fedrot_lora', ['secure_aggregation=True'], "use aggregator 'mean'"),
  ('scaffold', ['aggregator=normalised'], 'under a mean of the updates'),
  ('fednova', ['loss_power=1.0'], 'choose their own weights'),
  ('fednova', ['error_feedback=True'], 'of another number of steps'),
  ('ravan', ['contribution=shapley'], 'products of scalings'),
  ('q_fedavg', ['secure_aggregation=True'], "use aggregator 'mean'"),
  ('q_fedavg', ['floor=0.1'], 'choose their own weights'),
  ('afl', ['ema=0.5'], 'choose their own weights'),
  ('afl', ['sampler=size', 'size_power=1.0'], 'takes no weights'),
  ('fedex_lora_truncated', ['residual_rank=49'], 'no more than sites times'),
  ('hetlora', ['ranks=(4,8)'], 'one rank for each site'),
  ('hetlora', ['ranks=(4,8,32)'], 'more than config.lora.rank'),
  ('hetlora', ['ranks=(4,8,0)'], 'a tuple of integers >= 1'),
  ('hetlora', ['ranks=(4,8,16)', 'outbound=sign'], 'columns that a site lacks would count'),
  ('hetlora', ['ranks=(4,8,16)', 'top_k=0.5'], 'a site of lower rank lacks'),
  ('krum', ['cohort_size=2'], '2 f + 3 sites'),
  ('median', ['sampler=size'], 'takes no weights'),
  ('flora', ['sampler=poisson'], 'cohorts of one size'),
  ('flora', ['error_feedback=True'], 'replaces by others'),
  ('rolora', ['error_feedback=True'], 'and so be lost'),
  ('feddyn', ['outbound=int8'], "the sites' whole updates"),
  ('fed_medlora_plus', ['secure_aggregation=True'], "Fed-MedLoRA+'s, need every site's own"),
  ('fed_medlora_plus_code', ['secure_aggregation=True'], 'learns the sum only'),
  ('fed_medlora_loo', ['secure_aggregation=True'], 'learns the sum only'),
  ('fed_medlora_grad', ['secure_aggregation=True'], 'learns the sum only'),
  ('fed_medlora_answer', ['secure_aggregation=True'], 'learns the sum only'),
  ('fed_medlora_peer', ['secure_aggregation=True'], 'learns the sum only'),
  ('fed_medlora', ['signal=peer'], "loss_power 0 leaves it out"),
  ('fed_medlora', ['signal=answer'], "loss_power 0 leaves it out"),
  ('fed_medlora_peer', ['loss_power=2'], 'config.fed.loss_power=2.0: preset'),
  ('fed_medlora_peer', ['temperature=0.5'], 'no number to tune'),
  ('fed_medlora_peer', ['size_power=0.5'], 'config.fed.size_power=0.5: preset'),
  ('fed_medlora_peer', ['pooled=True'], 'nobody else can judge'),
  ('fed_medlora_peer', ['sharing=nothing'], 'nobody could be judged'),
  ('fed_medlora_answer', ['sharing=nothing'], 'nobody could be judged'),
  ('fed_medlora_peer', ['sharing=only_a'], 'a factor stays at its site'),
  ('fed_medlora_peer', ['aggregator=krum'], 'choose their own weights'),
  ('krum', ['signal=peer'], 'read no signal'),
  ('scaffold', ['signal=peer', 'loss_power=1'], 'averaged plainly'),
  ('hetlora', ['secure_aggregation=True'], 'learns the sum only'),
  ('krum', ['secure_aggregation=True'], "use aggregator 'mean'"),
  ('geometric_median', ['secure_aggregation=True'], "use aggregator 'mean'"),
  ('flora', ['secure_aggregation=True'], "use aggregator 'mean'"),
  ('fedex_lora', ['secure_aggregation=True'], "use aggregator 'mean'"),
  ('lora_fair', ['secure_aggregation=True'], "use aggregator 'mean'"),
  ('fed_medlora', ['secure_aggregation=True', 'outbound=int8'], 'has 32 bits a value'),
  ('fed_medlora', ['secure_aggregation=True', 'top_k=0.5'], 'has 32 bits a value'),
  ('fed_medlora', ['secure_aggregation=True', 'ranks=(4,8,16)'], 'have one shape'),
  ('scaffold', ['secure_aggregation=True'], 'travel without a mask'),
  ('fed_medlora', ['secure_aggregation=True', 'cohort_size=1'], 'the sum of one update'),
  ('ravan', ['sharing=everything'], 'the cores are trained and sent'),
  ('ravan', ['heads=0'], "no leaf of the adapter ends in '/h'"),
  ('ravan', ['ranks=(4,8,16)'], 'heads have one rank'),
  ('ravan', ['aggregator=refactorised'], 'needs both factors'),
  ('ravan', ['aggregator=aligned'], 'needs both factors'),
  ('ravan', ['server_optimizer=fedadam'], 'gives the next adapter itself'),
  ('ravan', ['secure_aggregation=True'], "use aggregator 'mean'"),
  ('ravan', ['signal=product_norm', 'loss_power=1.0'], 'no pairs of factors'),
  ('fed_medlora', ['aggregator=cores'], 'averages cores'),
  ('fed_medlora', ['contribution=shapley', 'secure_aggregation=True'], "every site's own update"),
  ('centralised', ['contribution=shapley'], 'has one site'),
  ('fedsa_lora', ['contribution=leave_one_out'], 'could judge'),
  ('single_site', ['contribution=leave_one_out'], 'could judge'),
  ('fed_medlora', ['contribution=owen'], 'one of none, leave_one_out, shapley is allowed'),
  ('fed_bert', ['heads=2'], 'a classifier has no adapter'),
  ('fed_bert', ['aggregator=refactorised'], 'no factors A and B to multiply'),
  ('fed_bert', ['aggregator=orthogonalised'], 'no factors A and B to multiply'),
  ('fed_bert', ['signal=product_norm'], 'no factors A and B to multiply'),
  ('fed_bert', ['sharing=only_a'], "use 'everything' or 'nothing'"),
  ('fed_bert', ['ranks=(4,8,16)'], 'has no rank'),
])
def test_unsound_pairs_are_refused_with_the_reason(preset, flags, message):
  check_refused(preset, [f'fed.{flag}' for flag in flags], message)


def test_a_deadline_is_refused_where_steps_are_divided_by():
  """Its site's weight is n_k steps / K; FedNova's fixed point of three equal sites of targets 1, 2
  and 4, the last cut to 1 of 4 steps, would be 1.78 instead of 7 / 3."""
  slow = ['simulation.step_seconds=1.0', 'simulation.deadline=5.0']
  check_refused('fednova', slow, 'divides by steps', 'simulation.deadline=5.0')
  parse(['x', '--config=configs/quickstart.py:fed_medlora', *(f'--config.{f}' for f in slow)],
        lambda values: None)


def check_refused(preset, flags, message, key='fed.'):
  argv = ['x', f'--config=configs/quickstart.py:{preset}', *(f'--config.{f}' for f in flags)]
  with pytest.raises(InputError) as error:
    parse(argv, lambda values: None)
  assert message in str(error.value) and '\n' not in str(error.value)
  assert str(error.value).startswith(f'config.{key}')


@pytest.mark.parametrize('preset', [
  'fed_medlora', 'uniform', 'fedprox', 'feddyn', 'fedadam', 'ffa_lora', 'fedsa_lora', 'rolora',
  'fed_bert', 'centralised', 'fednova', 'afl', 'fedsvd'])
def test_sums_are_enough_for_these(preset):
  validate(shrunk(preset, secure_aggregation=True))


def test_a_masked_study_charges_four_bytes_a_value(data):
  study = prepare(shrunk('uniform', secure_aggregation=True), data)
  for one in study.communication.exchange(0):
    assert {e.codec for e in one.up if e.kind == 'adapter'} == {'masked'}
    assert sum(e.bytes for e in one.up) == 4 * 4 * 2 * 72 + 28 + 4


def test_a_quantised_base_takes_no_fold():
  values = leaves(shrunk('fedex_lora').to_dict())
  check_method(values | {'model.quantization': 'none'}, {})
  with pytest.raises(InputError, match='quantised base'):
    check_method(values | {'model.quantization': 'nf4'}, {})


def test_every_named_choice_is_in_some_row():
  """A value that no preset uses would be tested by nobody."""
  used = lambda key, default: {  # noqa: E731
    row.get(key, default) for row in PRESETS.values()}
  assert used('aggregator', 'mean') == set(AGGREGATORS)
  assert used('signal', 'loss') == set(SIGNALS)


def values_down(exchanged, kind):
  """Float32 values of a kind in a message to a site."""
  return sum(entry.bytes for entry in exchanged.down if entry.kind == kind) // 4


def test_the_bytes_of_a_fold_by_hand(data):
  """FedEx: 3 sites of rank 4 leave 12 columns a matrix and round; two layers of q_proj [16, 16]
  and down_proj [24, 16]: 12 * 2 * (32 + 40) float32. Truncated to 4 columns: a third. Of ranks 1,
  2 and 4 FLoRA stacks 7 columns, while FedEx's hold the mean of all: 12. Before the first round
  nothing has been folded."""
  def folded(study, number=1):
    found = {values_down(one, 'residual') for one in study.communication.exchange(number)}
    assert len(found) == 1
    return found.pop() / (2 * 72)

  study = prepare(shrunk('fedex_lora'), data)
  assert (folded(study, 0), folded(study)) == (0, 12)
  assert folded(prepare(shrunk('fedex_lora_truncated'), data)) == 4
  assert folded(prepare(shrunk('flora', ranks=(1, 2, 4)), data)) == 7
  assert folded(prepare(shrunk('fedex_lora', ranks=(1, 2, 4)), data)) == 12
  assert folded(prepare(shrunk('fed_medlora'), data)) == 0
  lora = LoraConfig(4, 64.0, ('q_proj', 'down_proj'))
  state = study.algorithm.init(study.trainable.adapter)
  wide = widened(lora, site_adapter(state, study.sharing, 0))
  assert (wide.rank, wide.scale) == (4 + 2 * 12, lora.scale)


@pytest.mark.parametrize('preset', ['flora', 'rolora', 'ffa_lora', 'fedsa_lora', 'fed_medlora'])
def test_sites_that_missed_rounds_are_sent_what_they_lack(preset, data):
  """Two of three sites, of ranks 1, 2 and 4, in six rounds, against a replica at every site: which
  version of each leaf and which folds it holds. A leaf's version is the round that trained it."""
  ranks = (1, 2, 4)
  config = shrunk(preset, cohort_size=2, rounds=6, ranks=ranks)
  study = prepare(config, data)
  leaves_ = dict(zip(
    tree.paths(study.trainable.adapter), jax.tree.leaves(study.trainable.adapter), strict=True))
  shared = [path for path in leaves_ if study.sharing.shared(path)]
  server, folds = dict.fromkeys(shared, 'start'), []
  held, done = [{} for _ in ranks], [0] * 3
  missed = 0
  for number in range(6):
    cohort = study.communication.sampler.draw(number).sites
    for site, exchanged in zip(cohort, study.communication.exchange(number), strict=True):
      lacking = [path for path in shared if held[site].get(path) != server[path]]
      found = {e.tensor: e.bytes for e in exchanged.down if e.kind == 'adapter'}
      assert found == {
        path: leaves_[path].size // 4 * ranks[site] * 4 for path in lacking}
      assert values_down(exchanged, 'residual') == 2 * 72 * sum(folds[done[site]:])
      up = {e.tensor: e.bytes for e in exchanged.up if e.kind == 'adapter'}
      assert up == {
        path: leaves_[path].size // 4 * ranks[site] * 4 for path in shared
        if study.sharing.trained(path, number)}
      missed += len(folds) - done[site] > 1
      held[site], done[site] = dict(server), number
    folds.append(sum(ranks[site] for site in cohort) if preset == 'flora' else 0)
    server |= {path: number for path in shared if study.sharing.trained(path, number)}
  assert missed > 2


def test_messages_of_factors_in_turns_follow_the_rounds_that_happened(data):
  """B in round 1. After a round 2 that changed nothing, round 3 is A's turn, not B's again, and a
  site lacks nothing since it was sent B; after one that did, it lacks A and is B's."""
  exchange = prepare(shrunk('rolora', rounds=3), data).communication.exchange
  tensors = lambda message: {  # noqa: E731
    entry.tensor[-1] for entry in message if entry.kind == 'adapter'}
  for skipped, up, down in (((), {'b'}, {'a'}), ((1,), {'a'}, set()), ((0,), {'a'}, {'b'})):
    for one in exchange(2, skipped):
      assert (tensors(one.up), tensors(one.down)) == (up, down), skipped


def test_a_line_of_a_round_charges_every_site_by_its_rank(data):
  """Rank r of 4: r * 2 * (32 + 40) floats each way, and headers; a site that fails sends nothing.
  The simulated seconds are those of its own message."""
  config = shrunk('fed_medlora', ranks=(1, 2, 4))
  config.simulation.update(bandwidth=1e4, failure=0.4)
  study = prepare(config, data)
  broke = 0
  for number in range(2):
    turn = communication.round_participation(study.communication, study.schedule, number)
    line = communication.participation_line(
      study.communication, study.schedule, number, turn, 'xyz')
    values = 4 * 2 * 72 * np.array([1, 2, 4])
    assert line['site_bytes_down'].tolist() == (values + 12).tolist()
    came = turn.steps > 0
    assert line['site_bytes_up'].tolist() == np.where(came, values + 28, 0).tolist()
    np.testing.assert_allclose(turn.seconds[came], ((2 * values + 40) / 1e4)[came], rtol=1e-6)
    broke += (~came).sum()
    rows = communication.ledger_csv(study.communication, [line]).splitlines()[1:]
    for site, total in zip('xyz', line['site_bytes_down'], strict=True):
      own = [row.split(',') for row in rows if row.split(',')[1] == site]
      assert sum(int(row[-2]) for row in own) == total
  assert broke


def test_peers_are_sent_each_others_adapters(data):
  """Ranks 1, 2 and 4, 2 * 72 float32 a column: each judge is sent those of the two others, 6, 5 and
  3 columns, and answers with two floats. Of a site that has sent nothing nobody is sent any, nor
  is it. A site without V does not judge. Where the server holds V, nothing travels for it, its
  groups have no site, and all of them are judged by it."""
  config = shrunk('fed_medlora_peer', ranks=(1, 2, 4))
  exchange = prepare(config, data).communication.exchange
  columns = lambda exchanges: [values_down(one, 'judged') / (2 * 72) for one in exchanges]  # noqa: E731
  assert columns(exchange(0)) == [6, 5, 3]
  assert [sum(e.bytes for e in one.up if e.tensor == 'peer_loss') for one in exchange(0)] == [8] * 3
  assert columns(exchange(0, (), [True, False, True])) == [4, 0, 1]
  bare = [site._replace(tasks=tuple(part._replace(validation=()) for part in site.tasks))
          for site in data.sites]
  some = prepare(config, data._replace(sites=(bare[0], *data.sites[1:])))
  assert columns(some.communication.exchange(0)) == [0, 5, 3]
  served = prepare(config, data._replace(sites=tuple(bare), server=data.sites[:1]))
  assert served.validation.group_site.tolist() == [-1]
  assert columns(served.communication.exchange(0)) == [0, 0, 0]
  plain = prepare(shrunk('fed_medlora_answer', ranks=(1, 2, 4)), data).communication.exchange(0)
  assert columns(plain) == [0, 0, 0] and {e.tensor for one in plain for e in one.up}.isdisjoint(
    {'peer_loss'})


def test_judges_of_coalitions_are_charged_for_the_others_adapters(data):
  """Three sites of rank 4: each that has notes in V is sent the two others' adapters, 8 columns of
  2 * 72 float32, and their three weights, and answers with 2^3 losses; with leave-one-out, 5. Of a
  site that sent nothing nothing is sent: 2^2 coalitions of two. Nothing travels for a V of the
  server's own, and peers' judgement needs no adapters again."""
  header = lambda one, name: sum(  # noqa: E731
    e.bytes for e in (*one.down, *one.up) if e.tensor == name)
  for kind, losses, fewer in (('shapley', 8, 4), ('leave_one_out', 5, 4)):
    exchange = prepare(shrunk('fed_medlora', contribution=kind), data).communication.exchange
    for one in exchange(0):
      assert values_down(one, 'judged') == 8 * 2 * 72
      assert (header(one, 'coalition_weight'), header(one, 'coalition_loss')) == (12, 4 * losses)
      assert header(one, 'peer_loss') == 0
    first, absent, _ = exchange(0, (), [True, False, True])
    assert (values_down(first, 'judged'), header(first, 'coalition_loss')) == (576, 4 * fewer)
    assert values_down(absent, 'judged') == header(absent, 'coalition_loss') == 0
  both = prepare(shrunk('fed_medlora_peer', contribution='shapley'), data)
  peers = prepare(shrunk('fed_medlora_peer'), data)
  for one, other in zip(
      both.communication.exchange(0), peers.communication.exchange(0), strict=True):
    assert values_down(one, 'judged') == values_down(other, 'judged')
    assert sum(e.bytes for e in one.up) == sum(e.bytes for e in other.up) + 32
  bare = [site._replace(tasks=tuple(part._replace(validation=()) for part in site.tasks))
          for site in data.sites]
  served = prepare(shrunk('fed_medlora', contribution='shapley'), data._replace(
    sites=tuple(bare), server=data.sites[:1]))
  assert [values_down(one, 'judged') for one in served.communication.exchange(0)] == [0, 0, 0]


def test_only_scaffold_sends_control_variates(data):
  """Both ways, as many values as the adapter has."""
  exchanges = {
    rule: prepare(shrunk(rule), data).communication.exchange(0)[0]
    for rule in ('scaffold', 'feddyn')}
  sent = {
    (rule, way): {
      kind: sum(entry.bytes for entry in message if entry.kind == kind)
      for kind in ('adapter', 'control')}
    for rule, communication in exchanges.items()
    for way, message in (('down', communication.down), ('up', communication.up))}
  adapter = 4 * 4 * 2 * (32 + 40)
  for way in ('down', 'up'):
    assert sent['scaffold', way] == {'adapter': adapter, 'control': adapter}
    assert sent['feddyn', way] == {'adapter': adapter, 'control': 0}

"""What a run with a unit of privacy does not go together with, and why: config.privacy."""

from collections.abc import Collection, Mapping
from typing import Any

from fedmedjax.experiment import accounting
from fedmedjax.experiment.privacy_checks import SITE
from fedmedjax.experiment.refusal import Refusal
from fedmedjax.types import InputError

Values = Mapping[str, Any]

# Above it the promise for a whole site is hardly one: odds of e^10 to 1.
MOST_EPSILON = 10.0
# Signals that are asked of V in nats of answers, which can be cut and noised one by one.
_PRIVATE_SIGNALS = ('answer', 'peer')
# Parts of a user's own that work on notes before anything is trained, or on test notes.
_HARMLESS_PARTS = ('data.partition.kind', 'eval.metric')
# Aggregators that ask a site for its training loss.
_BY_TRAINING_LOSS = ('q_fedavg', 'agnostic')
# Aggregators and rules of which the clipped, noised sum of sites' updates is a part.
_SUMS, _RULES = ('mean',), ('plain', 'fedprox')


def _of_site(v: Values) -> bool:
  return v['privacy.unit'] == SITE


def _judged(v: Values) -> bool:
  """Whether notes of the sites' own say how much sites weigh."""
  return v['fed.loss_power'] > 0 and v['fed.signal'] != 'product_norm' and (
    _of_site(v) or not v['data.server_validation'])


def _noised_losses(v: Values) -> bool:
  return bool(v['privacy.loss_clip'] and v['privacy.loss_noise'])


def _banded(v: Values) -> bool:
  return v['privacy.mechanism'] == 'banded'


def _uncertain(v: Values) -> bool:
  """Whether a round may be left without any site."""
  return v['simulation.failure'] > 0 or v['simulation.deadline'] > 0 or (
    v['fed.sampler'] == 'poisson')


_PROMISE = (
  Refusal(lambda v: not v['privacy.delta'], 'privacy.delta',
          'an epsilon says nothing without the chance that it fails by, and 0 counts as none; give '
          'one far below one in the number of units, such as 1e-5'),
  Refusal(lambda v: not v['privacy.epsilon'], 'privacy.epsilon',
          'the budget of a unit of privacy; a number > 0 is needed'),
  Refusal(lambda v: _of_site(v) and v['privacy.epsilon'] > MOST_EPSILON and not v[
    'privacy.accept'], 'privacy.epsilon',
          'above 10 an epsilon promises a site next to nothing; use 10 or less, or say that you '
          'know by config.privacy.accept=True'),
)
_LEAVES = (
  Refusal(lambda v: v['log.steps'], 'log.steps',
          "would show every step's training loss, which must stay at its site; use False"),
  Refusal(lambda v: v['eval.every'] > 0, 'eval.every',
          'would publish scores of notes of the validation set while training, which nobody '
          'counts; use 0'),
  Refusal(lambda v: v['fed.contribution'] != 'none', 'fed.contribution',
          "would publish what single sites' updates do to validation losses, which nobody counts; "
          "use 'none'"),
  Refusal(lambda v: v['data.shots'] > 0, 'data.shots',
          'training sentences would stand in every prompt as they are; use 0'),
  Refusal(lambda v: v['checkpoint.keep_best'] > 0 and not (_judged(v) and _noised_losses(v)),
          'checkpoint.keep_best',
          'the best checkpoint is chosen by losses on validation notes, which tell of these; count '
          'them (a signal with config.privacy.loss_clip and loss_noise), or use 0'),
)
_ANALYSIS = (
  Refusal(lambda v: v['fed.aggregator'] in _BY_TRAINING_LOSS, 'fed.aggregator',
          "weighs sites by their training loss, which would leave as it is; use 'mean'"),
  Refusal(lambda v: v['privacy.clipping'] == 'gauge' and v['fed.sharing'] in (
    'only_b', 'alternating', 'served_a', 'cores'), 'fed.sharing',
          'what is cut is the change of the products A B, which takes both factors in every round; '
          "use 'everything', or config.privacy.clipping='norm'"),
  Refusal(lambda v: v['fed.ema'] > 0, 'fed.ema',
          'what is kept of earlier weights is outside the analysis; use 0'),
  Refusal(lambda v: v['fed.error_feedback'], 'fed.error_feedback',
          'what is owed from earlier rounds is outside the analysis, which bounds what one round '
          'sends; use False'),
)
_LOSSES = (
  Refusal(lambda v: bool(v['privacy.loss_clip']) != bool(v['privacy.loss_noise']),
          'privacy.loss_noise',
          'config.privacy.loss_clip and loss_noise belong together; set both, or neither'),
  Refusal(lambda v: _judged(v) and v['fed.signal'] not in _PRIVATE_SIGNALS, 'fed.signal',
          "weighs sites by losses on their notes that cannot be cut answer by answer; use 'answer' "
          "or 'peer' with config.privacy.loss_clip and loss_noise, or config.fed.loss_power=0"),
  Refusal(lambda v: _judged(v) and not _noised_losses(v), 'privacy.loss_noise',
          'sites are weighed by losses on their notes, which would leave as they are; set '
          'config.privacy.loss_clip (nats) and loss_noise, or config.fed.loss_power=0'),
  Refusal(lambda v: _judged(v) and v['privacy.adjacency'] == 'add_remove', 'privacy.adjacency',
          "losses on the validation set tell how many answers it has; use 'zero_out'"),
)
_SITE = (
  Refusal(lambda v: v['fed.pooled'], 'fed.pooled',
          'trains in one place, where there is no site to protect; use another unit'),
  Refusal(lambda v: v['fed.sharing'] in ('nothing', 'only_a'), 'fed.sharing',
          'what a site keeps to itself is saved without noise, in adapter/; use everything or '
          'only_b, or another unit'),
  Refusal(lambda v: v['fed.aggregator'] not in _SUMS, 'fed.aggregator',
          "a site is protected in a clipped and noised sum of updates only; use 'mean'"),
  Refusal(lambda v: v['fed.rule'] not in _RULES, 'fed.rule',
          "a site's control variates would travel without noise; use 'plain' or 'fedprox'"),
  Refusal(lambda v: v['fed.signal'] == 'product_norm' and v['fed.loss_power'] > 0, 'fed.signal',
          "norms of single sites' updates would leave as they are; use config.fed.loss_power=0"),
  Refusal(lambda v: v['fed.size_power'] > 0 and not v['privacy.size_cap'], 'privacy.size_cap',
          "a site's size weighs its update, and nothing bounds it; give the examples from which on "
          'a site has the whole weight, or use config.fed.size_power=0'),
  Refusal(lambda v: v['fed.sampler'] == 'size', 'fed.sampler',
          "weighs sites by how rarely they are drawn, which nothing bounds; use 'uniform'"),
  Refusal(lambda v: v['fed.floor'] > 0 and not v['fed.loss_power'], 'fed.floor',
          'a share that is spread evenly depends on the other sites; use 0'),
  Refusal(lambda v: v['privacy.clipping'] == 'gauge' and bool(v['fed.ranks']), 'fed.ranks',
          'sites of unlike rank have tangent spaces of their own; use ()'),
  Refusal(lambda v: _banded(v) and _uncertain(v), 'privacy.mechanism',
          'the noise of a round is correlated with that of the rounds before, and one that is '
          "skipped would shift them; use 'sampled', or config.simulation.failure=0 and deadline=0"),
  Refusal(lambda v: _banded(v) and v['privacy.clipping'] == 'gauge', 'privacy.clipping',
          'every round has a tangent space of its own, so that later rounds could not take back '
          "the noise of earlier ones; use 'norm', or config.privacy.mechanism='sampled'"),
  Refusal(lambda v: _banded(v) and v['fed.secure_aggregation'], 'privacy.mechanism',
          "noise that is correlated over rounds is the server's to add, and secure aggregation "
          "has it from the sites; use 'sampled'"),
  Refusal(lambda v: v['fed.secure_aggregation'] and v['privacy.accountant'] != 'rdp',
          'privacy.accountant',
          "what is known of a sum of the sites' discrete Gaussians is its Renyi divergence; use "
          "'rdp'"),
  Refusal(lambda v: v['fed.secure_aggregation'] and v['fed.sampler'] == 'poisson', 'fed.sampler',
          'every site adds noise for a fixed number of senders; use uniform'),
  Refusal(lambda v: v['privacy.missing'] > 0 and not v['fed.secure_aggregation'],
          'privacy.missing', 'the server adds all of the noise without secure aggregation; use 0'),
  Refusal(lambda v: v['privacy.canaries'] > 0 and (
    v['fed.secure_aggregation'] or v['privacy.clipping'] == 'gauge'), 'privacy.canaries',
          'canaries among sites are added to a plain sum of updates cut by their norm; use 0'),
  Refusal(lambda v: v['privacy.canaries'] > 0 and (v['fed.cohort_size'] > 0 or _uncertain(v)),
          'privacy.canaries',
          'canaries take part in all rounds, and sites in some of them only; use 0, or '
          'config.fed.cohort_size=0 and config.simulation.failure=0 and deadline=0'),
  Refusal(lambda v: v['fed.outbound'] != 'float32' or v['fed.top_k'] < 1, 'fed.outbound',
          'what a codec makes of an update may be longer than the clip; use float32 and top_k 1'),
)
_UNITS = (
  Refusal(lambda v: v['privacy.adjacency'] == 'add_remove', 'privacy.adjacency',
          'probabilities, steps and weights follow the number of units, so that one more would '
          "change them; use 'zero_out'"),
  Refusal(lambda v: v['privacy.size_cap'] > 0, 'privacy.size_cap',
          "bounds the weights of sites, for config.privacy.unit='site'; use 0"),
  Refusal(lambda v: v['privacy.missing'] > 0, 'privacy.missing',
          "is of noise that the sites add, for config.privacy.unit='site'; use 0"),
  Refusal(lambda v: v['privacy.mechanism'] == 'banded', 'privacy.mechanism',
          'below a site steps can draw units at random, which costs them less; correlated noise '
          "is for rounds of sites, where nothing is gained by drawing; use 'sampled'"),
  Refusal(lambda v: v['privacy.unit'] != 'example' and bool(v['data.partition.kind']) and v[
    'data.partition.unit'] == 'sentence', 'data.partition.unit',
          "a note's sentences would lie at several sites, each of which protects its part only; "
          "use 'note'"),
  Refusal(lambda v: v['privacy.unit'] == 'patient' and bool(v['data.partition.kind']),
          'data.partition.kind',
          "a patient's notes may be dealt out to several sites, each of which protects its part "
          "only; use '', or config.privacy.unit='note'"),
)


def check_privacy(values: Values, own: Collection[str] = ()) -> None:
  """Raises InputError for what the promise of config.privacy cannot be kept with.

  Args:
    values: the flat configuration, each value allowed on its own.
    own: keys of the user's own parts.
  """
  unit = values['privacy.unit']
  if not unit:
    if values['privacy.epsilon'] or values['privacy.noise']:
      key = 'epsilon' if values['privacy.epsilon'] else 'noise'
      raise InputError(
        f"config.privacy.{key}={values[f'privacy.{key}']}: promises nothing without "
        "config.privacy.unit: 'example', 'note', 'patient' or 'site'")
    return
  if not values['fed.train']:
    return
  level = _SITE if unit == SITE else _UNITS
  for refusal in (*_PROMISE, *_LEAVES, *_ANALYSIS, *_LOSSES, *level):
    if refusal.fails(values):
      raise InputError(
        f'config.{refusal.key}={values[refusal.key]!r}: with config.privacy.unit={unit!r} '
        f'{refusal.reason}' if refusal not in _PROMISE else
        f'config.{refusal.key}={values[refusal.key]!r}: {refusal.reason}')
  for key in sorted(set(own) - set(_HARMLESS_PARTS)):
    raise InputError(
      f'config.{key}={values[key]!r}: with config.privacy.unit={unit!r} a part of your own may '
      'look at what is not noised, such as losses on the validation set; use a named one')
  accounting.dp_accounting_module()

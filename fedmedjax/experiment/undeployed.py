"""What can be simulated but not done between hospitals, and what a policy makes impossible."""

from collections.abc import Collection

from fedmedjax.experiment import methods
from fedmedjax.experiment.methods import Own, Values
from fedmedjax.experiment.own_parts import own_parts
from fedmedjax.fed.aggregators.conventions import names_argument
from fedmedjax.types import InputError

# What a policy may keep from leaving, by its key in policy.toml.
EXAMPLES, TRAINING, VALIDATION, NORM, SCORES = (
  'number_of_examples', 'training_losses', 'validation_losses', 'update_norm', 'scores')

_WHY = 'by its key or by smallest_count'


def check_deployable(values: Values, own: Own) -> None:
  """Raises InputError where a study needs what no site elsewhere can give.

  Args:
    values: the flat configuration, validated.
    own: the user's own parts, by key.
  """
  aggregator = methods.method(values, own).aggregator
  pair = {'layers': {'q_proj': {'a': _Shape((1, 2, values['lora.rank'])),
                                'b': _Shape((1, values['lora.rank'], 2))}}}
  refused = (
    ('fed.train', not values['fed.train'], 'nothing is trained'),
    ('fed.pooled', values['fed.pooled'], 'pools the notes of all sites in one place'),
    ('fed.sharing', values['fed.sharing'] == 'nothing', 'sites share nothing, and send nothing'),
    ('fed.learner', values['fed.learner'] == 'bert',
     "only adapters are sent between hospitals; use 'lora'"),
    ('privacy.unit', bool(values['privacy.unit']),
     "the noise of steps and of sites is drawn in simulations only; use ''"),
    ('fed.local_rank', values['fed.local_rank'] > 0,
     'adds a second adapter to each site in simulations only; use 0'),
    ('fed.clusters', values['fed.clusters'] > 1,
     'keeps an adapter for each group in simulations only; use 1'),
    ('fed.buffer', values['fed.buffer'] > 0, 'waits for nobody on the simulated clock only; use 0'),
    ('fed.secure_aggregation', values['fed.secure_aggregation'],
     'the keys between the sites are simulated only; use False'),
    ('data.partition.kind', bool(values['data.partition.kind']),
     "deals notes out, and sites elsewhere hold their own; use ''"),
    ('data.server_validation', bool(values['data.server_validation']),
     "sites judge on their own notes, the server holds none; use ''"),
    ('fed.aggregator', names_argument(aggregator.update, 'validation_gradient'),
     'asks for the gradient of the validation loss, which leaves no site'),
    ('fed.heads', values['fed.heads'] > 0, 'adapters with heads are simulated only; use 0'),
    ('fed.contribution', values['fed.contribution'] != 'none',
     "coalitions of sites are judged in simulations only; use 'none'"),
    ('fed.signal', values['fed.signal'] == 'loo' and values['fed.loss_power'] > 0
     and aggregator.fold(pair['layers']) != (),
     "the averages without a site are too large to be sent with this aggregator; use 'peer'"),
  )
  for key, fails, reason in refused:
    if fails:
      raise InputError(f'config.{key}={values[key]!r}: {reason}')


def check_one_process(values: Values) -> None:
  """Raises InputError for what is not laid over the devices of several processes."""
  for key, neutral in (('fed.buffer', 0), ('fed.clusters', 1), ('fed.local_rank', 0)):
    if values[key] != neutral:
      raise InputError(
        f'config.{key}={values[key]!r}: is computed in one process only, not in several; use '
        f'{neutral}')


def objection(
  values: Values, site: str, withheld: Collection[str], most_norm: float, wants_privacy: bool
) -> str | None:
  """Why a study cannot be run with a site of such a policy, in one line; None = it can.

  Args:
    values: the flat configuration.
    site: its name.
    withheld: what does not leave it, of the names above.
    most_norm: longest update that it sends; 0 = any.
    wants_privacy: it takes part under differential privacy only.
  """
  own = own_parts(values)
  preset, parts = values['fed.preset'], methods.method(values, own)
  told = f'the policy of site {site!r}'

  def needs(key: str, reason: str) -> str:
    return f'{told} does not allow {preset!r}: config.{key}={values[key]!r} {reason}'

  if wants_privacy:
    return (f'{told} asks for differential privacy, which {preset!r} has not '
            '(privacy_required)')
  if most_norm and not 0 < values['fed.clip_update'] <= most_norm:
    return needs('fed.clip_update', f'allows longer updates than largest_update_norm={most_norm:g}')
  if most_norm and 'clear_control' in parts.rule.needs:
    return needs('fed.rule', 'sends control variates, whose length '
                 f'largest_update_norm={most_norm:g} does not bound')
  if EXAMPLES in withheld:
    for key, fails, reason in (
        ('fed.size_power', values['fed.size_power'] != 0 and 'fed.aggregator' not in own,
         'weighs sites by their number of examples; use 0'),
        ('fed.aggregator', 'fed.aggregator' in own, 'may weigh sites by their number of examples'),
        ('fed.sampler', values['fed.sampler'] == 'size',
         "draws sites by their number of examples; use 'uniform'"),
        ('fed.local_steps', not (values['fed.local_steps'] or values['fed.round_steps']),
         'counts epochs, whose steps tell the number of examples; set it')):
      if fails:
        return needs(key, f'{reason} ({EXAMPLES} is withheld, {_WHY})')
  if VALIDATION in withheld and methods.needs_validation(values):
    return needs('fed.signal', f'asks for losses on validation notes ({VALIDATION} is withheld)')
  if TRAINING in withheld and names_argument(parts.aggregator.update, 'start_loss'):
    return needs('fed.aggregator', f'asks for the training loss ({TRAINING} is withheld, {_WHY})')
  return None


class _Shape:
  """The shape of a factor, to ask an aggregator for room."""

  def __init__(self, shape: tuple[int, ...]):
    self.shape, self.dtype, self.ndim = shape, 'float32', len(shape)


"""The numbers of a round that a site's policy lets leave."""

from typing import Any, NamedTuple

import numpy as np

from fedmedjax.data.schedule import Schedule, round_work
from fedmedjax.deploy.memory import REFUSED, Unanswerable
from fedmedjax.deploy.policy import Policy
from fedmedjax.experiment.deployed import SiteStudy
from fedmedjax.experiment.undeployed import EXAMPLES, TRAINING
from fedmedjax.fed import apart, wire


class Told(NamedTuple):
  """What is said of a round beside its tensors."""

  arrays: wire.Arrays      # header arrays, scalars
  numbers: dict[str, Any]  # the same, for the manifest
  counts: dict[str, int]   # fields 'examples' and 'tokens'; {} = they stay


def withheld(policy: Policy, study: SiteStudy) -> tuple[str, ...]:
  """Keys of policy.toml of what never leaves: those that are off, and what stands for fewer
  examples than `smallest_count` in every round."""
  few = {
    EXAMPLES: study.size, TRAINING: min(study.size, study.round_examples or study.size)}
  return tuple(dict.fromkeys((*policy.withheld, *(
    key for key, count in few.items() if count < policy.smallest_count))))


def told_of_round(
  policy: Policy, study: SiteStudy, schedule: Schedule, number: int, count: int,
  learnt: apart.Learnt,
) -> Told:
  """What the policy lets leave of round `number`, in which the site took `count` steps.

  A loss is told where it is a mean over `smallest_count` examples or more: those of the round, or
  of its last step. An example that comes twice counts once.

  Raises:
    Unanswerable: the aggregator asks for a loss that stays.
  """
  losses, least = learnt.losses[:count], policy.smallest_count
  examples, tokens = round_work(schedule, number, [study.index], [count])
  before, _ = round_work(schedule, number, [study.index], [count - 1])
  values: dict[str, Any] = {
    'round': np.int32(number), 'site': np.int32(study.index), 'steps': np.int32(count)}
  if policy.number_of_examples and study.size >= least:
    values['weight'] = np.float32(study.size)
  if policy.training_losses and min(examples, study.size) >= least:
    values['train_loss'] = losses.mean(dtype=np.float32)
    if min(examples - before, study.size) >= least:
      values['last_loss'] = losses[-1]
    if learnt.start_loss is not None:
      values['start_loss'] = learnt.start_loss
  elif learnt.start_loss is not None:
    raise Unanswerable(
      REFUSED, 'config.fed.aggregator asks for its training loss, which its policy keeps: '
      'training_losses is false, or the round has fewer examples than its smallest_count')
  if policy.update_norm:
    values['local_norm'] = learnt.local_norm
  counts = {'examples': examples, 'tokens': tokens} if (
    'weight' in values and examples >= least) else {}
  return Told(
    {wire.name_of('header', name): np.asarray(value) for name, value in values.items()},
    {name: np.asarray(value).item() for name, value in values.items()}, counts)

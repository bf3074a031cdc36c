"""What of a round leaves the sites of a private run, and how: the manifest, and its enforcement.

Every key of a round's line is in the table below. What would leave as it is, such as a training
loss, stays at its site: it is taken out of the line before the line is kept, shown or written. A
key that is not in the table, as of a version to come, is taken out as well.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedmedjax.experiment.privacy_checks import SITE
from fedmedjax.fed.types import RoundMetrics

NOISED = 'noised'   # made of noised sums and of what is public, so that it costs nothing more
PUBLIC = 'public'   # not protected: sizes, and who took part
STAYS = 'stays'     # at its site; nobody else learns it

_PUBLIC = (
  'round', 'sites', 'steps', 'local_steps', 'bytes_up', 'bytes_down', 'site_bytes_up',
  'site_bytes_down', 'site_seconds', 'simulated_seconds', 'seconds', 'useful_step_share', 'chunk',
  'remat', 'skipped', 'privacy')
# Made of the server's steps, which are noised before anything else is done with them.
_OF_STEPS = ('step_norm', 'step_cosine', 'weights')
# Of what a single site sends: noised where its own gradients are.
_OF_UPDATES = ('update_norm', 'cosine', 'product_gap', 'quarantined')
# Counted or measured on the examples themselves.
_OF_NOTES = ('train_loss', 'last_loss', 'rising', 'examples', 'tokens', 'validation_f1')
# Numbers, of which others make sums.
_ADDED_UP = {'examples': 0, 'tokens': 0}


def leaves_as(values: Mapping[str, Any]) -> dict[str, str]:
  """{key of a round's line: NOISED, PUBLIC or STAYS}, and the adapter.

  Args:
    values: the flat configuration, of a run with a unit of privacy.
  """
  of_site = values['privacy.unit'] == SITE
  # By norms of updates, or by a V of the server's own, sites are judged on what is noised already.
  judged = values['fed.loss_power'] > 0 and (
    bool(values['privacy.loss_noise']) or not of_site)
  return {
    'adapter': NOISED, **dict.fromkeys(_PUBLIC, PUBLIC), **dict.fromkeys(_OF_STEPS, NOISED),
    **dict.fromkeys(_OF_UPDATES, STAYS if of_site else NOISED),
    'validation_loss': NOISED if judged else STAYS, **dict.fromkeys(_OF_NOTES, STAYS)}


def of_metrics(metrics: RoundMetrics, ledger: Any) -> RoundMetrics:
  """A round's metrics on the host, without what stays at the sites where there is a ledger.

  Whatever is made of training losses, or of norms of single sites that are protected themselves,
  such as a warning that one is left out, has nothing to say then.
  """
  if ledger is None:
    return metrics
  metrics = metrics._replace(train_loss=np.full_like(metrics.train_loss, np.nan))
  return metrics if ledger.lower else metrics._replace(
    sound=np.ones_like(metrics.sound), local_norm=np.ones_like(metrics.local_norm))


def leaving(line: Mapping[str, Any], leaves: Mapping[str, str] | None) -> dict[str, Any]:
  """A round's line without what stays at the sites.

  Lists become lists of None, so that they have a place for every site; sums become 0.

  Args:
    line: of a round.
    leaves: of `leaves_as`; None = nothing is private, and all of the line is kept.
  """
  if leaves is None:
    return dict(line)
  sites, kept = len(line.get('sites', ())), {}
  for key, value in line.items():
    if leaves.get(key, STAYS) != STAYS:
      kept[key] = value
    elif key in _ADDED_UP:
      kept[key] = _ADDED_UP[key]
    elif key in ('quarantined', 'rising'):
      kept[key] = []
    elif key in leaves and sites and np.ndim(value) and len(value) == sites:
      kept[key] = [None] * sites
    elif key in leaves:
      kept[key] = None
  return kept

"""What every key of config.privacy may hold."""

from fedmedjax.experiment.checks import (
  BELOW_ONE,
  BOOLEAN,
  NOT_NEGATIVE,
  POSITIVE,
  integer,
  one_of,
)

SITE = 'site'
UNITS = ('', 'example', 'note', 'patient', SITE)
CLIPPINGS = ('norm', 'gauge')
MECHANISMS = ('sampled', 'banded')
ADJACENCIES = ('zero_out', 'add_remove')
ACCOUNTANTS = ('pld', 'rdp')

CHECKS = {
  'privacy.unit': one_of(UNITS), 'privacy.epsilon': NOT_NEGATIVE, 'privacy.delta': BELOW_ONE,
  'privacy.noise': NOT_NEGATIVE, 'privacy.clip': POSITIVE,
  'privacy.clipping': one_of(CLIPPINGS), 'privacy.mechanism': one_of(MECHANISMS),
  'privacy.bands': integer(1, 10_000), 'privacy.adjacency': one_of(ADJACENCIES),
  'privacy.accountant': one_of(ACCOUNTANTS), 'privacy.unit_examples': integer(1, 10_000),
  'privacy.microbatch': integer(0), 'privacy.loss_clip': NOT_NEGATIVE,
  'privacy.loss_noise': NOT_NEGATIVE, 'privacy.loss_answers': integer(1, 10_000),
  'privacy.canaries': integer(0, 100_000),
  'privacy.accept': BOOLEAN, 'privacy.noise_from_seed': BOOLEAN,
  'privacy.size_cap': NOT_NEGATIVE, 'privacy.missing': integer(0),
}

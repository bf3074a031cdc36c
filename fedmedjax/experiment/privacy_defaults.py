"""Keys of differential privacy, with meaning and unit: config.privacy. See docs/privacy.md."""

from ml_collections import ConfigDict


def privacy() -> ConfigDict:
  """Whose notes are protected, how well, and by what noise; without a unit there is none."""
  privacy = ConfigDict()
  _promise(privacy)
  _mechanism(privacy)
  # Largest loss of one answer on V in nats that counts, where losses on V weigh sites; 0 = losses
  # are not bounded, and so are refused beside a unit.
  privacy.loss_clip = 0.0
  # Answers of one example, note or patient in V of a task at most, where losses on V weigh sites;
  # others are left out of V. A sentence has several where relations are asked for.
  privacy.loss_answers = 1
  # Standard deviation of the noise on those losses, over what one unit can move all of a round by.
  privacy.loss_noise = 0.0
  # Invented examples that are planted among those trained on, each in or out by chance, to measure
  # afterwards how much of them can be told; 0 = none.
  privacy.canaries = 0
  return privacy


def _promise(privacy: ConfigDict) -> None:
  """What is promised, and to whom."""
  # Whose part in the training nobody can be sure of: of an 'example' (a sentence, with all that is
  # asked about it), a 'note', a 'patient' (all notes of a source; where a corpus names none, a
  # note) or a 'site'; '' = of none.
  privacy.unit = ''
  # Budget that the whole run may spend: of every site for its own examples, notes or patients, of
  # the federation where the unit is a site; needed with a unit.
  privacy.epsilon = 0.0
  # Chance that the promise may fail by, in (0, 1), far below one in the number of units; needed
  # with a unit.
  privacy.delta = 0.0
  # What is compared: 'zero_out' (the unit's contribution put to zero) or, of sites alone,
  # 'add_remove' (one unit more or less).
  privacy.adjacency = 'zero_out'
  # How the privacy loss is added up: 'pld' (its distribution, tight) or 'rdp' (Renyi).
  privacy.accountant = 'pld'
  # Accepts an epsilon above 10 where the unit is a site.
  privacy.accept = False


def _mechanism(privacy: ConfigDict) -> None:
  """How the noise gets in."""
  # Standard deviation of the noise on a sum, in units of clip; 0 = as much as the planned rounds
  # need to spend epsilon and no more.
  privacy.noise = 0.0
  # Longest contribution of one unit (L2) that counts: of its gradient in a step, or of a site's
  # update in a round.
  privacy.clip = 1.0
  # What is cut to it: the 'norm' of all numbers, or that of the products B A ('gauge', PRISM).
  privacy.clipping = 'norm'
  # 'sampled' (units drawn at random each step; of sites all that take part, or those drawn) or
  # 'banded' (noise that is correlated over rounds, without any drawing; of sites alone).
  privacy.mechanism = 'sampled'
  # Rounds that the noise of 'banded' is correlated over.
  privacy.bands = 8
  # Examples n_k from which on a site has the whole weight, where sites are the units and weigh by
  # size: w_k = (min(n_k, size_cap) / size_cap) ** fed.size_power; 0 = not bounded, and refused.
  privacy.size_cap = 0.0
  # Sites of a round that may be missing where secure aggregation has its noise from the sites: the
  # others' noise is enough then, and with more missing the round releases nothing.
  privacy.missing = 0
  # Rows of one sentence, note or patient that count in a step, at most.
  privacy.unit_examples = 8
  # Makes noise and draws of config.seed, so that a run can be made again, for tests and research;
  # else they come of a secret of the run's own (noise_secret in its folder).
  privacy.noise_from_seed = False
  # Units whose gradients are in memory at a time; 0 = 8, or 1 for a language model on a CPU.
  privacy.microbatch = 0

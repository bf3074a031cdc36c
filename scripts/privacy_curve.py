"""Units of the study of privacy: audited runs, and F1 against epsilon beside an attack.

    python scripts/study.py privacy [--minutes=60] [--tables]

The first unit is scripts/privacy_proof.py. Others are a level (sentences or notes as units of
privacy) with a budget, of a word tagger with ten seeds. Their runs, of one seed
each, are those of `fedmedjax.main` with the configuration of `compare/study_units.py`, trained
together as one program, and are attacked by the losses of `fedmedjax/audit/`, as
`python -m fedmedjax.audit` does. Rows are in docs/results/privacy.jsonl.
"""

from functools import cache, partial
from typing import Any

import numpy as np
import privacy_proof

from fedmedjax.audit import membership, populations
from fedmedjax.audit.losses import Reader, tagger_reader
from fedmedjax.compare.study_units import EPSILONS, Unit, private_tagger
from fedmedjax.compare.together import final_states, program, scores
from fedmedjax.experiment import privacy
from fedmedjax.experiment.build import load_data, prepare
from fedmedjax.experiment.types import Data, Study
from fedmedjax.fed.round import site_adapter
from fedmedjax.runtime.progress import Reporter


def with_figures(unit: Unit) -> Unit:
  """The unit with what it computes, where it is one of the word tagger's."""
  if unit.study != 'privacy' or unit.run is not None:
    return unit
  if 'proof' in unit.name:
    return unit._replace(figures=partial(proof_figures, **unit.settings))
  return unit._replace(figures=partial(
    curve_figures, unit.name['level'], float(unit.name['epsilon']), unit.settings['seeds']))


def proof_figures(reporter: Reporter, runs: int, faulty: int) -> dict[str, Any]:
  """{'audited': a line for each kind of run: claim, largest bound, how many lie above, noise}."""
  del reporter
  kinds = [(True, one) for one in privacy_proof.sound_runs(range(runs))] + [
    (False, one) for one in privacy_proof.faulty_runs(range(1000, 1000 + faulty))]
  return {'audited': [{
    'kind': one.kind, 'sound': sound, 'runs': len(one.bounds), 'claim': round(one.claim, 6),
    'bound': round(max(one.bounds), 6), 'above': sum(b > one.claim for b in one.bounds),
    'noise': round(one.measured, 6)} for sound, one in kinds]}


def curve_figures(
  level: str, epsilon: float, seeds: tuple[int, ...], reporter: Reporter
) -> dict[str, Any]:
  """{'runs': a line for each seed: F1, areas under the attack's curve, noise, what was spent}."""
  studies, reader = {}, reader_of(level)
  with reporter.task('private runs', 2 * len(seeds)) as advance:
    for seed in seeds:
      studies[seed] = prepare(private_tagger(level, epsilon, seed), notes_of(level, seed))
      advance()
    noises = {study.ledger.noise for study in studies.values() if study.ledger}
    if len(noises) > 1:
      raise RuntimeError(f'runs of unlike noise ({noises}) cannot be one program')
    lines = []
    shared = program(next(iter(studies.values())))
    for seed, state, *_ in final_states(studies, shared):
      study = studies[seed]
      found = attacked(study, reader, site_adapter(state, study.sharing, 0))
      lines.append({
        'seed': seed, 'f1': round(float(np.mean([*scores(study, state).values()])), 6),
        **found, **spending(study)})
      advance()
  return {'runs': lines}


@cache
def notes_of(level: str, seed: int) -> Data:
  """The notes of a seed, the same for every budget; an ordinary run does not look at units."""
  return load_data(private_tagger(level, EPSILONS[-1], seed), Reporter(quiet=True))


@cache
def reader_of(level: str) -> Reader:
  """Losses of examples, by a network that no seed and no budget changes."""
  return tagger_reader(private_tagger(level, EPSILONS[-1]), notes_of(level, 0))


def attacked(study: Study, reader: Reader, adapter: dict) -> dict[str, float]:
  """Areas under the curve of the three attacks of the audit, all sites together."""
  seed, sites = study.options.seed, study.data
  kin = [
    *(one for number in range(len(sites.sites))
      for one in populations.members(study, reader, None, number, 0, seed)),
    *(one for site in sites.tested for one in populations.others(reader, site, 0, seed))]
  after, before = reader.losses(
    [one.group for one in kin], [adapter, study.trainable.adapter], lambda count: None)

  def of(losses: list, member: bool) -> np.ndarray:
    return np.concatenate([own for one, own in zip(kin, losses, strict=True)
                           if one.member == member])

  sources = tuple(tuple(name for one in kin if one.member == member for name in one.sources)
                  for member in (True, False))
  found = membership.attacks(
    (of(after, True), of(after, False)), (of(before, True), of(before, False)), sources, 2, seed)
  return {f'auc_{name}': round(attack['auc'], 6) for name, attack in found.items()} | {
    'caught': round(found['calibrated']['tpr'][-1], 6)}


def spending(study: Study) -> dict[str, Any]:
  """The noise, and the epsilon of the site that has spent most, of all planned rounds."""
  if study.ledger is None:
    return {}
  lines = [{privacy.KEY: privacy.as_line(study.ledger.rows(number))}
           for number in range(study.options.rounds)]
  entry = privacy.entry(study.ledger, lines, study.options.rounds)
  return {'noise': round(entry['noise'], 6), 'spent': round(entry['epsilon'], 6)}

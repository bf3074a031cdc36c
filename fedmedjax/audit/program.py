"""The audit of a finished run: everything comes from the run's folder and the notes it was given.

Nothing is trained. The run's notes are read and split again, and compared with the checksums of
inputs.json, so that members and others are surely those of the run.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from fedmedjax import tree
from fedmedjax.audit import identifiers, membership, populations
from fedmedjax.audit.losses import READERS, Group, Reader
from fedmedjax.audit.one_run import lower_bound, most_refutable
from fedmedjax.audit.populations import Kin
from fedmedjax.data.canaries import Canary, site_coins
from fedmedjax.data.site import SiteData
from fedmedjax.experiment.accounting import epsilon
from fedmedjax.experiment.build import load_data, prepare
from fedmedjax.experiment.config import leaves
from fedmedjax.experiment.notes import planted_canaries
from fedmedjax.experiment.own_parts import own_parts
from fedmedjax.experiment.privacy import spent
from fedmedjax.experiment.privacy_checks import SITE
from fedmedjax.experiment.private_sites import canary_key
from fedmedjax.experiment.recorded import recorded_config
from fedmedjax.experiment.tagger import load_tagger
from fedmedjax.experiment.types import Study
from fedmedjax.fed.site_canaries import alignments
from fedmedjax.model.files.peft import load_peft
from fedmedjax.report.audit import FILE
from fedmedjax.runtime.cli import versions
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store.files import plain, read_json, read_lines, write_json
from fedmedjax.train import fingerprint
from fedmedjax.types import InputError

# Of the bound, and of the claim that stands beside it: with the delta of a promise, which may be
# larger, the theorem of `one_run.py` has nothing left to show with hundreds of canaries.
_DELTA = 1e-6


class Target(NamedTuple):
  """An adapter that is attacked, and whose notes it was trained on."""

  name: str                   # a site's; '' = of all sites
  adapter: dict
  trained: tuple[int, ...]    # numbers of the sites
  tested: tuple[SiteData, ...]


class Losses(NamedTuple):
  """Losses of examples that were all trained on, or all not."""

  kin: Kin
  trained: np.ndarray    # f64[n], of the run's adapter
  untrained: np.ndarray  # f64[n], of the model before training


def audit(workdir: Path, reporter: Reporter, most: int = 0) -> dict[str, Any]:
  """Attacks a finished run, and writes WORKDIR/audit.json -> what it says (docs/files.md).

  Args:
    workdir: of the run.
    reporter: shows progress.
    most: examples of each task and site that are attacked, at random; 0 = all.

  Raises:
    InputError: no finished run with an adapter is there, or its notes or model have changed.
  """
  config = recorded_config(workdir)
  summary = _finished(workdir, config)
  own = own_parts(leaves(config.to_dict()))
  data = load_data(config, reporter, own=own)
  if not (workdir / fingerprint.FILE).exists():
    raise InputError(f'{workdir / fingerprint.FILE}: is not there, so nobody knows whether the '
                     'notes are those of the run')
  fingerprint.compare_inputs(workdir, fingerprint.fingerprint(config, data, own))
  study = prepare(config, data, own=own)
  reader, targets = READERS[config.fed.learner](config, data), _targets(workdir, config, study)
  drawn = config.privacy.unit not in ('', SITE)
  seen = None if drawn else populations.trained_on(study, read_lines(workdir / 'metrics.jsonl'))
  canaries = planted_canaries(config, data.sites)
  attacked, bits, scores = [], [], []
  for target in targets:
    kin = [
      *(one for number in target.trained
        for one in populations.members(study, reader, seen, number, most, config.seed)),
      *(one for site in target.tested
        for one in populations.others(reader, site, most, config.seed))]
    mine = [one for one in canaries if one.site in {data.sites[n].name for n in target.trained}]
    losses, known = _losses(config, study, reader, target, kin, mine, reporter)
    attacked.append(losses)
    bits += known[0]
    scores += known[1]
  lines, delta = read_lines(workdir / 'metrics.jsonl'), min(config.privacy.delta or 1.0, _DELTA)
  result = plain({
    'run': {'preset': summary['preset'], 'seed': summary['seed'], 'learner': config.fed.learner},
    'privacy': summary.get('privacy'), 'false': list(membership.FALSE),
    'membership': _rows(config, attacked),
    'extraction': identifiers.extraction(canaries, bits) if canaries else None,
    'bound': _bound(
      *(_site_scores(config, study, targets[0]) if config.privacy.unit == SITE else
        ([one.planted for one in canaries], scores)), delta,
      _claim(lines, delta, config.privacy.accountant)),
    'versions': versions()})
  write_json(workdir / FILE, result)
  return result


def _finished(workdir: Path, config: ConfigDict) -> dict[str, Any]:
  """The summary of a run that can be audited; InputError for any other."""
  if not (workdir / 'summary.json').is_file():
    raise InputError(f'--workdir={workdir}: its run is not finished (summary.json); finish it')
  if config.fed.learner not in READERS:
    raise InputError(
      f'--workdir={workdir}: trained a BERT classifier (config.fed.learner); runs with adapters, '
      f'of {", ".join(READERS)}, are audited')
  summary = read_json(workdir / 'summary.json')
  if not summary.get('rounds'):
    raise InputError(f'--workdir={workdir}: trained nothing, so there is nothing to audit')
  return summary


def _targets(workdir: Path, config: ConfigDict, study: Study) -> list[Target]:
  """The adapters of the run: one for all sites, or each site's own."""
  def load(folder: Path) -> dict:
    if config.fed.learner == 'tagger':
      return load_tagger(folder, study.trainable.adapter)
    return load_peft(folder, study.data.base.config)[0]

  folder, sites = workdir / study.trainable.folder, study.data.sites
  if (folder / 'adapter_model.safetensors').exists():
    return [Target('', load(folder), tuple(range(len(sites))), study.data.tested)]
  own = [number for number, site in enumerate(sites) if (folder / site.name).is_dir()]
  if len(own) < len(sites):
    raise InputError(f'--workdir={workdir}: {folder.name}/ lacks the adapter of the run')
  return [Target(
    site.name, load(folder / site.name), (number,),
    tuple(populations.found_by(site.name, study.data.tested)))
    for number, site in enumerate(sites)]


def _losses(
  config: ConfigDict, study: Study, reader: Reader, target: Target, kin: Sequence[Kin],
  canaries: Sequence[Canary], reporter: Reporter,
) -> tuple[list[Losses], tuple[list[float], list[float]]]:
  """(losses of examples, (exposures, scores) of the target's canaries)."""
  parts = {site.name: site.tasks[0] for site in study.data.sites}

  def group(site: str, documents) -> Group:
    part = parts[site]
    return Group(part, tuple(window for document in documents for own in reader.encode(
      part, part.ask.find(document)[0]) for window in own))

  kinds = list(dict.fromkeys((one.site, one.kind) for one in canaries))
  groups = [
    *(one.group for one in kin),
    *(group(site, [one.document for one in canaries if (one.site, one.kind) == (site, kind)])
      for site, kind in kinds),
    *(group(site, identifiers.alternatives(kind, config.seed)) for site, kind in kinds)]
  # The adapter before training: of a LoRA it is the base alone, or config.lora.start.
  adapters = [target.adapter, study.trainable.adapter]
  total = sum(len(one.tokens) for one in groups)
  with reporter.live(), reporter.task(
      f'losses{" of " * bool(target.name)}{target.name}', total) as advance:
    after, before = reader.losses(groups, adapters, advance)
  found = [Losses(*one) for one in zip(kin, after, before, strict=False)]
  exposure, score = np.zeros(len(canaries)), np.zeros(len(canaries))
  for number, name in enumerate(kinds):
    at = [i for i, one in enumerate(canaries) if (one.site, one.kind) == name]
    place = len(kin) + number
    exposure[at] = identifiers.exposures(after[place], after[place + len(kinds)])
    score[at] = identifiers.scores(after[place], after[place + len(kinds)])
  return found, (exposure.tolist(), score.tolist())


def _rows(config: ConfigDict, attacked: Sequence[Sequence[Losses]]) -> list[dict[str, Any]]:
  """The attacks on all sites together and on each, as audit.json has them."""
  every = [one for losses in attacked for one in losses]
  trained = list(dict.fromkeys(one.kin.site for one in every if one.kin.member))
  # Of a site that was tested, by what it or the adapter of all was trained on.
  chosen: list[tuple[str, Callable[[Losses], bool]]] = [('all sites', lambda one: True)]
  if len(trained) > 1:
    chosen += [(name, partial(_of_site, name)) for name in trained]
  rows = []
  for name, wanted in chosen:
    mine = [one for one in every if one.kin.member and wanted(one)]
    theirs = [one for one in every if not one.kin.member and wanted(one)]
    counts = [sum(len(one.trained) for one in some) for some in (mine, theirs)]
    if not all(counts):
      continue
    sources = [[name for one in some for name in one.kin.sources] for some in (mine, theirs)]
    rows.append({
      'site': name, 'members': counts[0], 'others': counts[1],
      'sources': [len(set(some)) for some in sources],
      'attacks': membership.attacks(
        *((np.concatenate([getattr(one, key) for one in mine]),
           np.concatenate([getattr(one, key) for one in theirs]))
          for key in ('trained', 'untrained')),
        tuple(sources), config.eval.bootstrap_samples, config.seed)})
  return rows


def _of_site(name: str, one: Losses) -> bool:
  return one.kin.site == name


def _site_scores(
  config: ConfigDict, study: Study, target: Target
) -> tuple[Sequence[bool], Sequence[float]]:
  """(coins, scores) of the canaries among sites: how far the model moved along each direction.

  What a site keeps to itself was not sent, and says nothing.
  """
  coins = site_coins(config.privacy.canaries, config.seed)
  step = tree.select(
    jax.tree.map(lambda after, before: after - before, target.adapter, study.trainable.adapter),
    study.sharing.shared)
  return coins.tolist(), np.asarray(
    alignments(canary_key(leaves(config.to_dict())), len(coins), step)).tolist()


def _claim(lines: Sequence[Mapping[str, Any]], delta: float, accountant: str) -> float | None:
  """The epsilon at `delta` of what the rounds have spent; None where nothing is promised."""
  return max((epsilon(rows, delta, accountant) for rows in spent(lines).values()), default=None)


def _bound(
  coins: Sequence[bool], scores: Sequence[float], delta: float, claim: float | None
) -> Mapping[str, Any] | None:
  """The lower bound of epsilon from canaries that were planted, the claim at the same delta, and
  what they could show at best; None without any."""
  if not coins:
    return None
  finite = claim if claim is not None and np.isfinite(claim) else None
  return lower_bound(scores, coins, delta)._asdict() | {
    'at_best': most_refutable(len(coins), delta), 'claim': finite}

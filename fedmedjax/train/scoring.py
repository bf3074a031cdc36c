"""Scores of a run: every site's test set answered and scored, and what summary.json says of it."""

import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np

from fedmedjax import tree
from fedmedjax.data.site import SPLIT_SEED, SiteData, TaskData
from fedmedjax.eval import evaluate, metrics
from fedmedjax.experiment.placing import on_host
from fedmedjax.experiment.round_log import participant_names
from fedmedjax.experiment.types import Study
from fedmedjax.fed.clusters import has_clusters
from fedmedjax.fed.local import mean_loss
from fedmedjax.fed.round import site_adapter
from fedmedjax.fed.sharing import shares_all
from fedmedjax.fed.types import FedState
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store import files, words
from fedmedjax.train.gathered import all_scores


def adapters(study: Study, state: FedState | None) -> dict[str, dict]:
  """{'': the adapter of all sites}, or {site: its adapter} when sites keep leaves to themselves or
  are in clusters.

  Without a state, the adapter before training.
  """
  if state is None:
    return {'': study.trainable.untrained}
  if shares_all(study.sharing, study.trainable.adapter) and not has_clusters(state):
    return {'': on_host(study, site_adapter(state, study.sharing, 0))}
  return {
    name: on_host(study, site_adapter(state, study.sharing, index))
    for index, name in enumerate(participant_names(study))}


def watched_f1(study: Study, state: FedState, reporter: Reporter) -> dict:
  """The keys of a round's line that say how the held-out sentences are answered after it.

  `validation_f1_sites` is {site: typed strict F1} of entities, or of modifiers where a site has no
  entities, or the first metric of texts; `validation_f1` is their plain mean. A site's own adapter
  answers where it has one, and every site's for notes of the server, as for an external cohort.
  """
  answering, found, here = adapters(study, state), {}, study.data.reading.here
  asked = {site.name: [site.name] if site.name in answering else list(answering)
           for site in study.watched}
  count = sum(len(site.test) * len(asked[site.name]) for site in filter(here, study.watched))
  with reporter.task('validation sentences', count) as advance:
    for site in filter(here, study.watched):
      records = [
        study.trainable.answer(answering[name], site, advance) for name in asked[site.name]]
      found[site.name] = evaluate.headline(evaluate.score(
        site, records, study.options.seed, 1, study.text_metrics.headline()).scores)
  told = study.processes.merged('answers while training', files.plain(found))
  found = {site.name: told[site.name] for site in study.watched}
  return {
    'validation_f1': float(np.mean(list(found.values()))), 'validation_f1_sites': found}


def fewer(site: SiteData, number: int) -> SiteData:
  """The site with `number` of its test sentences, the same for every seed, and all their examples.

  A smaller number draws a subset of a larger one's; 0, or more than there are, = all.
  """
  places = _places(site)
  if not 0 < number < len(places):
    return site
  order = np.random.default_rng((SPLIT_SEED, zlib.crc32(site.name.encode()), 3)).permutation(
    len(places))
  kept = {places[i] for i in order[:number]}

  def cut(part: TaskData) -> TaskData:
    chosen = [
      i for i, example in enumerate(part.test) if (example.document, example.start) in kept]
    return part._replace(
      test=tuple(part.test[i] for i in chosen),
      # Of another process's site there are none.
      test_tokens=tuple(part.test_tokens[i] for i in chosen) if part.test_tokens else ())

  return site._replace(tasks=tuple(map(cut, site.tasks)))


def _places(site: SiteData) -> list[tuple[str, int]]:
  """(document, start) of each test sentence."""
  return list(dict.fromkeys((example.document, example.start) for example in site.test))


def score_all(
  study: Study, adapters: dict[str, dict], folder: Path, reporter: Reporter, *,
  trained: bool = True, cross: bool = False, only: int = 0, beside: int = 0,
) -> tuple[dict[str, evaluate.SiteScores], dict[str, dict[str, evaluate.SiteScores]]]:
  """Decodes and scores every site's test set -> (scores, cross-site scores by adapter and site).

  Of several processes each answers for the sites whose notes it has, and all know all scores.
  A site's test set is answered by the site's own adapter. An external cohort has none: every
  adapter answers for it, and their counts are added.

  Args:
    adapters: {name: adapter [*p]}; "" names one for all sites.
    folder: of the predictions; those across sites are in cross_site/ADAPTER/ there.
    trained: False = answers on disk are used again, since no round has changed them.
    cross: True = every adapter is also scored alone on every site.
    only: sentences of each site that are answered, see `fewer`; 0 = all.
    beside: sentences of each site that are also scored without the others (`SiteScores.few`).
  """
  scores, crossed = {}, {name: {} for name in adapters if cross}
  score = partial(
    evaluate.score, seed=study.options.seed, samples=study.options.bootstrap_samples,
    text=study.text_metrics)
  asked = filter(study.data.reading.here, (*study.data.tested, *study.data.external))
  for site in (fewer(site, only) for site in asked):
    path = folder / f'{site.name}.jsonl'
    own = [site.name] if site.name in adapters else list(adapters)
    answers = {} if trained else {name: files.read_lines(path) for name in own}
    if not any(evaluate.asked(site, records) for records in answers.values()):
      answering = list(adapters) if cross else own
      what = 'decoding' if trained else 'zero-shot'
      with reporter.task(f'{what} {site.name}', len(site.test) * len(answering)) as advance:
        answers = {
          name: study.trainable.answer(adapters[name], site, advance) for name in answering}
      files.write_lines(path, words.kept(
        (record for name in own for record in answers[name]), study.options.text))
    scores[site.name] = score(site, [answers[name] for name in own])
    if (part := fewer(site, beside)) is not site:
      scores[site.name] = scores[site.name]._replace(few=score(
        part, [_about(part, answers[name]) for name in own]))
    for name, row in crossed.items():
      files.write_lines(
        folder / 'cross_site' / name / path.name, words.kept(answers[name], study.options.text))
      row[site.name] = score(site, [answers[name]])
  return all_scores(study, 'scores', scores), {
    name: all_scores(study, f'scores of {name}', row) for name, row in crossed.items()}


def _about(site: SiteData, records: list[dict]) -> list[dict]:
  """The records about the site's test sentences."""
  places = set(_places(site))
  return [
    record for record in records if (record['document'], record['sentence_start']) in places]


def forced_all(
  study: Study, adapters: dict[str, dict], reporter: Reporter, *, cross: bool = False
) -> tuple[dict[str, evaluate.SiteScores], dict[str, dict[str, evaluate.SiteScores]]]:
  """As `score_all`, by teacher forcing: nothing is decoded and nothing is written.

  Two times {} where config.eval.teacher_forced does not ask for it. Tested sites without entities
  are left out.
  """
  scores, crossed = {}, {name: {} for name in adapters if cross}
  forced = study.trainable.forced
  tested = filter(study.data.reading.here, (*study.data.tested, *study.data.external))
  for site in tested if forced else ():
    own = [site.name] if site.name in adapters else list(adapters)
    answering = list(adapters) if cross else own
    with reporter.task(f'teacher forcing {site.name}', len(site.test) * len(answering)) as advance:
      found = {name: forced(adapters[name], site, advance) for name in answering}
    if any(entry is None for entry in found.values()):
      continue
    counts = {key: sum(found[name].counts[key] for name in own) for key in found[own[0]].counts}
    scores[site.name] = found[own[0]]._replace(counts=counts)
    for name, row in crossed.items():
      row[site.name] = found[name]
  # Of several processes one may have nothing to be asked.
  if not (study.options.teacher_forced if study.spread else forced):
    return scores, {}
  return all_scores(study, 'teacher forcing', scores), {
    name: all_scores(study, f'teacher forcing of {name}', row) for name, row in crossed.items()}


def forced_shown(scores: dict[str, evaluate.SiteScores]) -> dict[str, dict]:
  """{site: {task: {'strict': {'precision', 'recall', 'f1'}, 'lenient': ...}}}, over all types."""
  return files.plain({
    name: {task: {
      kind: dict(zip(('precision', 'recall', 'f1'), values[metrics.AVERAGES.index('typed')],
                     strict=True))
      for kind, values in zip(metrics.KINDS, metrics.averages(counts.sum(axis=0)), strict=True)}
      for task, counts in site.counts.items()}
    for name, site in scores.items()})


def counted(
  study: Study, adapters: dict[str, dict], scores: dict, crossed: dict, global_scores: dict | None,
  zero_shot: dict | None, forced: tuple[dict, dict],
) -> dict:
  """The file `evaluate.COUNTS`: what scores add up from, and each adapter's loss on V if crossed.

  Args:
    adapters: {name: adapter [*p]}.
    scores, crossed: of `score_all`.
    global_scores: of the adapter averaged for all sites, if there is one.
    zero_shot: before training, where that was asked for.
    forced: of `forced_all`.
  """
  def by_adapter(rows):
    return {name: evaluate.source_counts(row) for name, row in rows.items()}

  return files.plain({
    'scores': evaluate.source_counts(scores), 'cross_site': by_adapter(crossed),
    'global': evaluate.source_counts(global_scores or {}),
    'zero_shot': evaluate.source_counts(zero_shot or {}),
    'beside_zero_shot': evaluate.source_counts(
      {name: site.few or site for name, site in scores.items()} if zero_shot else {}),
    'validation': validation_losses(study, adapters) if crossed else {}} | ({
      'teacher_forced': evaluate.source_counts(forced[0]),
      'teacher_forced_cross_site': by_adapter(forced[1])} if study.options.teacher_forced else {}))


def validation_losses(study: Study, adapters: dict[str, dict]) -> dict[str, float]:
  """{name: loss of each adapter on the validation set V of all sites}; {} without a V.

  It is what the best single site is chosen by, before test notes are looked at.

  Args:
    adapters: {name: adapter [*p]}.
  """
  if study.validation is None:
    return {}
  loss_fn = study.step_loss(study.executions[0].remat)
  loss = jax.jit(partial(mean_loss, loss_fn))
  return {name: float(loss(adapter, study.trainable.base, study.validation))
          for name, adapter in adapters.items()}


def shown(scores: dict[str, evaluate.SiteScores]) -> dict[str, dict]:
  """{site: {task: scores}}, as summary.json has them."""
  return {name: site.scores for name, site in scores.items()}


def too_long(sites: Sequence[SiteData]) -> dict[str, int]:
  """What training and validation notes lost to config.data.max_length, with what they had."""
  def total(key: str) -> int:
    return sum(site.report.get(key, 0) for site in sites)

  return {
    'examples': total('too_long'), 'of_examples': total('measured_examples'),
    'entities': total('too_long_entities'), 'of_entities': total('measured_entities')}


def _untrained(study: Study, zero_shot: dict, scores: dict) -> dict:
  """The key `zero_shot` of summary.json, from {site: SiteScores} before and after training.

  Where only a part of the sentences was answered before training, `sentences` says how many at each
  site, and `trained` are the run's scores of just these.
  """
  found = {'scores': shown(zero_shot), 'answers': evaluate.answer_counts(zero_shot)}
  if not any(site.few for site in scores.values()):
    return found
  few = [fewer(site, study.options.max_zero_shot)
         for site in (*study.data.tested, *study.data.external)]
  return found | {
    'trained': {
      name: (site.few or site).scores for name, site in scores.items()},
    'sentences': {site.name: len(_places(site)) for site in few}}


def run_summary(
  study: Study, lines: list[dict], scores: dict, zero_shot: dict | None,
  global_scores: dict | None,
) -> dict:
  """summary.json without what only the whole run knows (times, memory).

  Where sites keep leaves to themselves, `scores` are of their own adapters, as they would be used,
  and `global` of the one for all.
  """
  trainable = study.trainable

  def total(key):
    return sum(line[key] for line in lines)

  seconds = total('seconds')
  # What the same exchanges would have cost with the whole model, both ways.
  exchanges = sum(
    count > 0 for line in lines for count in line['site_bytes_up'] + line['site_bytes_down'])
  return files.plain({
    'preset': study.options.preset, 'own_parts': study.options.own_parts,
    'seed': study.options.seed, 'rounds': len(lines),
    'sites': [site.name for site in study.data.tested],
    'external': [site.name for site in study.data.external],
    'train_examples': [len(site.train) for site in study.data.sites],
    'partition': study.data.skew and study.data.skew._asdict(),
    'scores': shown(scores),
    'test_sources': [len(site.sources) for site in scores.values()],
    'bytes_up': total('bytes_up'), 'bytes_down': total('bytes_down'),
    'bytes_full_model': trainable.whole_bytes * exchanges,
    'adapter_parameters': tree.size(trainable.adapter),
    'base_parameters': trainable.whole_parameters,
    'local_steps': total('local_steps'),
    'tokens_per_second': total('tokens') / seconds if seconds else 0.0,
    'examples_per_second': total('examples') / seconds if seconds else 0.0,
    **evaluate.rates(scores.values()), 'answers': evaluate.answer_counts(scores),
    'too_long': too_long(study.data.sites),
    'site_weights': [line['weights'] for line in lines],
    'cohorts': [line['sites'] for line in lines],
    'simulated_seconds': total('simulated_seconds'),
    'zero_shot': zero_shot and _untrained(study, zero_shot, scores),
    'global': {
      'scores': shown(global_scores), 'answers': evaluate.answer_counts(global_scores),
    } if global_scores else None,
    **trainable.summary,
  })

"""What a process found out about its own sites, as JSON values for the others."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedmedjax.data import statistics
from fedmedjax.data.leaks import same_everywhere
from fedmedjax.data.scripts import words as split_words
from fedmedjax.data.site import SiteData
from fedmedjax.data.statistics import SiteStatistics
from fedmedjax.eval.evaluate import SiteScores
from fedmedjax.experiment.types import Study
from fedmedjax.store import files


def all_scores(
  study: Study, what: str, own: Mapping[str, SiteScores]
) -> dict[str, SiteScores]:
  """The scores of all sites, in their order, from those of the sites that are here."""
  if study.processes.count == 1:
    return dict(own)
  told = study.processes.merged(what, {name: _told(one) for name, one in own.items()})
  return {site.name: _scores(told[site.name])
          for site in (*study.data.tested, *study.data.external) if site.name in told}


def _told(site: SiteScores | None) -> dict[str, Any] | None:
  return site and site._asdict() | {
    'scores': files.plain(site.scores), 'few': _told(site.few), 'counts': {
      name: [str(counts.dtype), list(counts.shape), counts.ravel().tolist()]
      for name, counts in site.counts.items()}}


def _scores(told: dict[str, Any] | None) -> SiteScores | None:
  return told and SiteScores(**told | {
    'sources': tuple(told['sources']), 'few': _scores(told['few']), 'counts': {
      name: np.array(values, kind).reshape(shape)
      for name, (kind, shape, values) in told['counts'].items()}})


def all_statistics(study: Study) -> dict[str, SiteStatistics] | None:
  """{site: statistics of the sentences that the run uses}; None but in process 0.

  Words and targets are hashed: how many there are and which are the same is all that is told.
  """
  sites = {site.name: site for site in (
    *study.data.sites, *study.data.tested, *study.data.external)}
  own = {name: _numbers(site) for name, site in sites.items() if study.data.reading.here(site)}
  parts = study.processes.collected('statistics of notes', own)
  return parts and {name: _statistics(one) for part in parts for name, one in part.items()}


def _numbers(site: SiteData) -> dict[str, Any]:
  found = statistics.used_statistics(site)
  return found._asdict() | {
    'sentence_words': found.sentence_words.tolist(), 'note_words': found.note_words.tolist(),
    'vocabulary': [[same_everywhere(word), count] for word, count in found.vocabulary.items()],
    'targets': found.targets and [
      [_stand_in(target), count] for target, count in found.targets.items()]}


def _stand_in(target: str) -> str:
  """Another text of as many words, the same for the same text."""
  count = len(split_words(target))
  return ' '.join([f'w{same_everywhere(target) % 2**64:x}', *'x' * (count - 1)]) if count else ''


def _statistics(told: dict[str, Any]) -> SiteStatistics:
  def counted(pairs: Sequence) -> Counter:
    return Counter({key: count for key, count in pairs})

  return SiteStatistics(**told | {
    'types': tuple(told['types']), 'sentence_words': np.array(told['sentence_words'], int),
    'note_words': np.array(told['note_words'], int), 'vocabulary': counted(told['vocabulary']),
    'entities': Counter(told['entities']), 'modifiers': Counter(told['modifiers']),
    'targets': told['targets'] and counted(told['targets'])})

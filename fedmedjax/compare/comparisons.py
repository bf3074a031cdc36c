"""Differences between regimes: an interval over sources and seeds and a sentence for each."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.compare.rows import DEPTH
from fedmedjax.compare.scenarios import LOCAL
from fedmedjax.compare.score_words import WORDS, score_name, text_score
from fedmedjax.eval import intervals, metrics, paired
from fedmedjax.eval.intervals import Estimate
from fedmedjax.eval.paired import Answers

# Federated methods are compared with these, in this order, and with _REFERENCE.
_BASELINES = ('zero_shot', 'single_site', 'centralised', DEPTH, 'fed_bert')
_REFERENCE = 'fed_medlora'


class Runs(NamedTuple):
  """The runs of a row of the table, one for each seed; every tuple has an entry for each seed."""

  summaries: tuple[dict, ...]                 # summary.json
  scores: tuple[Answers, ...]                 # counts by site
  cross_site: tuple[dict[str, Answers], ...]  # {adapter's site: counts by site}; {} if sites share
  everyone: tuple[Answers, ...]               # of the adapter averaged for all sites; {} likewise
  # {adapter's site: its loss on the validation set V}; {} where none was computed
  validation: tuple[dict[str, float], ...] = ()

  @property
  def trained(self) -> bool:
    """Whether any step was taken; False for zero-shot and for a model behind an endpoint."""
    return any(summary.get('local_steps') for summary in self.summaries)


class Draws(NamedTuple):
  """The random draws of every bootstrap interval of a comparison."""

  seed: int
  samples: int   # number of resamples


class Comparison(NamedTuple):
  """The difference between two rows: `ours` minus `theirs`, typed strict F1 or a metric of an own
  task.

  It is the mean over sites and seeds.
  """

  scenario: str
  label: str     # the part of the scenario, in words
  score: str     # a name of counts.json
  where: str     # the sites, in words
  ours: str      # name of a row
  theirs: str    # name of a row
  estimate: Estimate
  sources: int   # number of tested sources (articles, trials, patients or notes), of one seed
  seeds: int     # number of seeds
  fewest: int    # sources of the site that has the fewest
  holm: float | None = None  # estimate.p by Holm's correction over the `family` comparisons
  family: int = 1

  def __str__(self) -> str:
    low, high = self.estimate[1:3]
    label = f'{self.label}, ' if self.label else ''
    seeds = f', {self.seeds} seeds' if self.seeds > 1 else ''
    doubt = '; 0 is in the interval' if low is not None and low <= 0 <= high else ''
    if self.holm is not None and self.family > 1:
      doubt += f'; p {_p(self.estimate.p)}, of {self.family} comparisons by Holm {_p(self.holm)}'
    caution = intervals.caution(self.fewest, self.seeds)
    return (
      f'{self.ours} − {self.theirs}: {self.estimate} ({score_name(self.score)}, '
      f'{label}{self.where}, {self.sources} source{"s" * (self.sources > 1)}{seeds}{doubt}'
      f'{f"; {caution}" if caution else ""})')

  def record(self) -> dict[str, Any]:
    """The entry of findings.json; the scenario's key there is 'setting'."""
    _, *values = self
    return {'setting': self.scenario, **dict(zip(self._fields[1:], values, strict=True))} | {
      'estimate': self.estimate._asdict(), 'sentence': str(self)}


def _p(value: float) -> str:
  return f'{value:.3f}' if value >= 0.001 else '< 0.001'


def corrected(compared: Sequence[Comparison]) -> list[Comparison]:
  """The comparisons that a table or page makes together, with Holm's correction over them."""
  values = intervals.holm([one.estimate.p for one in compared])
  family = sum(value is not None for value in values)
  return [one._replace(holm=value, family=family)
          for one, value in zip(compared, values, strict=True)]


def merged(runs: Runs, draws: Draws) -> dict:
  """One summary for all seeds: means of numbers, intervals over sources and seeds.

  Of a single seed, its summary as it is. Of several seeds, `seed` and the lists (weights, cohorts)
  are the first seed's, `seeds` names all, and only typed F1 and the metrics of own tasks have an
  interval.
  """
  if len(runs.summaries) == 1:
    return runs.summaries[0]
  out = _mean(runs.summaries) | {
    'seed': runs.summaries[0]['seed'], 'seeds': [summary['seed'] for summary in runs.summaries],
    'warnings': [f'seed {summary["seed"]}: {warning}' for summary in runs.summaries
                 for warning in summary.get('warnings', ())]}
  for scores, answers in (
      (out['scores'], runs.scores), ((out.get('global') or {}).get('scores', {}), runs.everyone)):
    for site, tasks in scores.items():
      for name in answers[0][site]:
        entry = _entry(tasks, name)
        for kind in ('strict',) if text_score(name) else metrics.KINDS:
          estimate = paired.mean_f1(answers, [site], name, kind=kind, **draws._asdict())
          known = None if estimate.low is None else [estimate.low, estimate.high]
          if text_score(name):
            entry |= {'value': estimate.value, 'ci95': known}
          else:
            entry[kind]['typed'] |= {'f1': estimate.value, 'ci95': known}
  return out


def _entry(tasks: Mapping, name: str) -> dict:
  """'ner' -> tasks['ner'], 're.modifier' -> tasks['re']['modifier']."""
  # Metrics of one's own may have dots in their names.
  for key in name.split('.', 1):
    tasks = tasks[key]
  return tasks


def _mean(values: Sequence[Any]) -> Any:
  """Leaf by leaf: the mean of numbers, the first of other values; None for an interval 'ci95'."""
  first = values[0]
  if isinstance(first, dict):
    return {
      key: None if key == 'ci95' else _mean([value[key] for value in values]) for key in first
      if all(key in value for value in values)}
  number = all(type(value) in (int, float) for value in values) and any(
    value != first for value in values)
  return float(np.mean(values)) if number else first


def chosen_sites(runs: Runs) -> tuple[str, ...] | None:
  """The site of each seed whose own adapter has the least loss on the validation set V.

  The choice is made before any test note is looked at, and seed by seed: sites that were dealt out
  are others with each seed, whatever their names. None where a seed has no such losses.
  """
  if not (runs.validation and all(runs.validation) and all(runs.cross_site)):
    return None
  return tuple(min(losses, key=losses.__getitem__) for losses in runs.validation)


def best_single_site(runs: Runs) -> tuple[str, list[Answers]] | None:
  """The name of the single site that V chooses, and the counts of its adapter, by seed."""
  names = chosen_sites(runs)
  if names is None:
    return None
  called = 'best single site'
  return f'{called} ({", ".join(dict.fromkeys(names))})', [
    rows[name] for rows, name in zip(runs.cross_site, names, strict=True)]


def _rivals(
  rows: Mapping[str, Runs], ours: str, own: bool
) -> Iterator[tuple[str, Sequence[Answers]]]:
  """(name, counts by seed) of what a method is compared with.

  `own`: whether in single_site each site's adapter answers for its own notes only.
  """
  for name in (*_BASELINES, *(n for n in rows if n.startswith('api:')), _REFERENCE):
    if name not in rows or name == ours:
      continue
    yield _called(name, own), rows[name].scores
    if name == 'single_site' and (best := best_single_site(rows[name])):
      yield best


def _called(name: str, own: bool) -> str:
  """A row's name in sentences; `own` as for `_rivals`."""
  single_site = f'{name} ({"each its own" if own else "all of them, counts added"})'
  return single_site if name == 'single_site' else name


def comparisons(
  rows: Mapping[str, Runs], scenario: str, label: str, draws: Draws
) -> list[Comparison]:
  """Every method against every baseline, over the sites and on each external cohort.

  Args:
    rows: {row: Runs} of one part.
    scenario, label: of `Comparison`.
    draws: of all intervals.
  """
  first = next(iter(rows.values())).summaries[0]
  rows = with_everyone(rows)
  places = [first['sites'], *([site] for site in first['external'])]
  methods = [name for name in rows if name not in _BASELINES and not name.startswith('api:')]
  compared = []
  for score in scores_of(rows.values()):
    for wanted in places:
      external = wanted is not places[0]
      for name in methods:
        sites = paired.having(rows[name].scores, wanted, score)
        where = f'mean of {len(sites)} sites' if len(sites) > 1 else ''.join(sites) + (
          ' (external)' if external else '')
        rivals = _rivals(rows, name, not external and not first.get('partition'))
        for rival, answers in rivals if sites else ():
          if paired.having(answers, sites, score) == sites:
            compared.append(_comparison(
              scenario, label, score, where, (name, rows[name].scores), (rival, answers), sites,
              draws))
  return compared


def with_everyone(rows: Mapping[str, Runs]) -> dict[str, Runs]:
  """The rows, and a row 'NAME (global)' for each row whose sites have adapters of their own.

  That row has the answers of the one adapter averaged for all sites, as
  `report.terminal.with_global` has its scores.
  """
  out = {}
  for name, runs in rows.items():
    out[name] = runs
    if all(runs.everyone):
      empty = ({},) * len(runs.summaries)
      out[f'{name} (global)'] = runs._replace(
        scores=runs.everyone, cross_site=empty, everyone=empty, validation=empty)
  return out


def new_site_comparisons(
  parts: Mapping[str, Mapping[str, Runs]], draws: Draws, none: str = 'n = 0'
) -> list[Comparison]:
  """Each federated adapter fine-tuned on n sentences, against two baselines.

  These are the adapter trained on the n sentences alone, and the federated adapter as it was.

  Args:
    parts: {n in words: {row: Runs}}.
    draws: of all intervals.
    none: the label of the part without sentences, which may be absent.
  """
  compared, untouched = [], parts.get(none, {})
  for label, rows in parts.items():
    sites = rows[LOCAL].summaries[0]['sites']
    for score in scores_of(rows.values()):
      for name in (arm for arm in rows if arm != LOCAL):
        rivals = [(LOCAL, rows[LOCAL])]
        if name in untouched and label != none:
          rivals.append((f'{name} as it was', untouched[name]))
        for rival, runs in rivals:
          if paired.having([*rows[name].scores, *runs.scores], sites, score):
            compared.append(_comparison(
              'new_site', label, score, sites[0], (f'{name} + n', rows[name].scores),
              (rival, runs.scores), sites, draws))
  return compared


def scaling_comparisons(parts: Mapping[int, Mapping[str, Runs]], draws: Draws) -> list[Comparison]:
  """Each trained regime with the largest number of sites against itself with the smallest.

  Both are tested on the same notes.

  Args:
    parts: {number of sites: {regime: Runs}}.
    draws: of all intervals.
  """
  fewest, most = min(parts), max(parts)
  before, after = with_everyone(parts[fewest]), with_everyone(parts[most])
  compared = []
  for name in (name for name in after if name in before and after[name].trained):
    for score in scores_of([after[name]]):
      tested = after[name].summaries[0]['sites']
      sites = paired.having([*after[name].scores, *before[name].scores], tested, score)
      if sites:
        where = f'mean of {len(sites)} sites' if len(sites) > 1 else sites[0]
        compared.append(_comparison(
          'scaling', '', score, where,
          (f'{_called(name, own=False)}, {most} sites', after[name].scores),
          (f'{fewest} sites', before[name].scores), sites, draws))
  return compared


def _comparison(scenario, label, score, where, ours, theirs, sites, draws: Draws) -> Comparison:
  """The `Comparison` of `ours` and `theirs`, each (name, counts by seed), over `sites`."""
  estimate = paired.difference(ours[1], theirs[1], sites, score, **draws._asdict())
  sources = sum(len(ours[1][0][site][score].sources) for site in sites)
  return Comparison(
    scenario, label, score, where, ours[0], theirs[0], estimate, sources, len(ours[1]),
    paired.fewest_sources(ours[1], sites, score))


def scores_of(rows: Iterable[Runs]) -> list[str]:
  """The scores that any row has, in the order of WORDS; then those of own tasks, in their order."""
  present = dict.fromkeys(name for runs in rows for answers in runs.scores
                          for scores in answers.values() for name in scores)
  return [name for name in WORDS if name in present] + list(filter(text_score, present))

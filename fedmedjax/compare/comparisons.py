"""What a comparison found: seeds put together, and a plain sentence for each difference."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.compare.scenarios import LOCAL
from fedmedjax.eval import metrics, paired
from fedmedjax.eval.paired import Answers, Estimate

# Scores as sentences call them.
WORDS = {
  'ner': 'entities', 're.modifier': 'modifiers', 're.triple': 'triples',
  're.end_to_end': 'relations end to end'}
# What federated methods are compared with, in this order, beside Fed-MedLoRA.
_BASELINES = ('zero_shot', 'single_site', 'centralised', 'fed_bert')
_REFERENCE = 'fed_medlora'


class Runs(NamedTuple):
  """A row of a comparison: one run for each of K seeds."""

  summaries: tuple[dict, ...]
  scores: tuple[Answers, ...]
  cross_site: tuple[dict[str, Answers], ...]  # each empty where sites have no adapters of their own
  everyone: tuple[Answers, ...]               # of the one adapter for all, likewise

  @property
  def trained(self) -> bool:
    """Whether anything took a step: not zero-shot, nor a model behind an endpoint."""
    return any(summary.get('local_steps') for summary in self.summaries)


class Draws(NamedTuple):
  """Of every bootstrap here."""

  seed: int
  samples: int


class Finding(NamedTuple):
  """`ours` minus `theirs`, typed strict F1, mean over sites and seeds."""

  setting: str
  label: str     # what the part of the setting is, in words
  score: str     # a key of WORDS
  where: str
  ours: str
  theirs: str
  estimate: Estimate
  notes: int     # of one seed
  seeds: int

  def __str__(self) -> str:
    label = f'{self.label}, ' if self.label else ''
    seeds = f', {self.seeds} seeds' if self.seeds > 1 else ''
    doubt = '' if self.estimate.low > 0 or self.estimate.high < 0 else '; 0 is in the interval'
    return (
      f'{self.ours} − {self.theirs}: {self.estimate} ({WORDS[self.score]}, {label}{self.where}, '
      f'{self.notes} note{"s" * (self.notes > 1)}{seeds}{doubt})')

  def record(self) -> dict[str, Any]:
    """In JSON's terms."""
    return self._asdict() | {'estimate': self.estimate._asdict(), 'sentence': str(self)}


def merged(runs: Runs, draws: Draws) -> dict:
  """The summary of all seeds: plain means, intervals over notes and seeds.

  One seed's is as it is. Of several, `seed` and lists (weights, cohorts) are those of the first,
  `seeds` names all, and only typed F1 keeps an interval.
  """
  if len(runs.summaries) == 1:
    return runs.summaries[0]
  out = _mean(runs.summaries) | {
    'seed': runs.summaries[0]['seed'], 'seeds': [summary['seed'] for summary in runs.summaries]}
  for scores, answers in (
      (out['scores'], runs.scores), ((out.get('global') or {}).get('scores', {}), runs.everyone)):
    for site, tasks in scores.items():
      for name in answers[0][site]:
        entry = _entry(tasks, name)
        for kind in metrics.KINDS:
          estimate = paired.mean_f1(answers, [site], name, kind=kind, **draws._asdict())
          entry[kind]['typed'] |= {'f1': estimate.value, 'ci95': [estimate.low, estimate.high]}
  return out


def _entry(tasks: Mapping, name: str) -> dict:
  """'ner' -> tasks['ner'], 're.modifier' -> tasks['re']['modifier']."""
  for key in name.split('.'):
    tasks = tasks[key]
  return tasks


def _mean(values: Sequence[Any]) -> Any:
  """Leaf by leaf: means of numbers, the first of everything else; an interval is left out."""
  first = values[0]
  if isinstance(first, dict):
    return {
      key: None if key == 'ci95' else _mean([value[key] for value in values]) for key in first
      if all(key in value for value in values)}
  number = all(type(value) in (int, float) for value in values) and any(
    value != first for value in values)
  return float(np.mean(values)) if number else first


def best_single_site(runs: Runs, sites: Sequence[str], score: str) -> tuple[str, list[Answers]]:
  """The site whose own adapter is best over `sites`, and its answers, one a seed."""
  name = paired.best_adapter(runs.cross_site, sites, score)
  return name, [rows[name] for rows in runs.cross_site]


def _rivals(
  rows: Mapping[str, Runs], ours: str, sites: Sequence[str], score: str, own: bool
) -> Iterator[tuple[str, Sequence[Answers]]]:
  """What a method is compared with; `own`: whether single sites answer for their own notes."""
  for name in (*_BASELINES, *(n for n in rows if n.startswith('api:')), _REFERENCE):
    if name not in rows or name == ours:
      continue
    yield _called(name, own), rows[name].scores
    if name == 'single_site' and all(
        row and paired.having(row.values(), sites, score) == list(sites)
        for row in rows[name].cross_site):
      site, answers = best_single_site(rows[name], sites, score)
      yield f'best single site ({site})', answers


def _called(name: str, own: bool) -> str:
  """A row as a sentence calls it; `own`: single sites answer for their own notes."""
  alone = f'{name} ({"each its own" if own else "all of them, counts added"})'
  return alone if name == 'single_site' else name


def comparisons(
  rows: Mapping[str, Runs], setting: str, label: str, draws: Draws
) -> list[Finding]:
  """Every method against every baseline, over the sites and on each external cohort."""
  first = next(iter(rows.values())).summaries[0]
  rows = with_everyone(rows)
  places = [first['sites'], *([site] for site in first['external'])]
  methods = [name for name in rows if name not in _BASELINES and not name.startswith('api:')]
  found = []
  for score in WORDS:
    for wanted in places:
      external = wanted is not places[0]
      for name in methods:
        sites = paired.having(rows[name].scores, wanted, score)
        where = f'mean of {len(sites)} sites' if len(sites) > 1 else ''.join(sites) + (
          ' (external)' if external else '')
        rivals = _rivals(rows, name, sites, score, not external and not first.get('partition'))
        for rival, answers in rivals if sites else ():
          if paired.having(answers, sites, score) == sites:
            found.append(_finding(
              setting, label, score, where, (name, rows[name].scores), (rival, answers), sites,
              draws))
  return found


def with_everyone(rows: Mapping[str, Runs]) -> dict[str, Runs]:
  """The rows, those whose sites have adapters of their own a second time: with the answers of the
  one adapter for all (as `report.with_global` has their scores)."""
  out = {}
  for name, runs in rows.items():
    out[name] = runs
    if all(runs.everyone):
      nothing = ({},) * len(runs.summaries)
      out[f'{name} (global)'] = runs._replace(
        scores=runs.everyone, cross_site=nothing, everyone=nothing)
  return out


def new_site_comparisons(
  parts: Mapping[str, Mapping[str, Runs]], draws: Draws, none: str = 'n = 0'
) -> list[Finding]:
  """Each federated adapter, fine-tuned on n sentences, against these sentences alone, and against
  itself as it was.

  `parts`: {n in words: {arm: Runs}}; `none`: the part of no sentence, if it is there.
  """
  found, untouched = [], parts.get(none, {})
  for label, rows in parts.items():
    sites = rows[LOCAL].summaries[0]['sites']
    for score in WORDS:
      for name in (arm for arm in rows if arm != LOCAL):
        rivals = [(LOCAL, rows[LOCAL])]
        if name in untouched and label != none:
          rivals.append((f'{name} as it was', untouched[name]))
        for rival, runs in rivals:
          if paired.having([*rows[name].scores, *runs.scores], sites, score):
            found.append(_finding(
              'new_site', label, score, sites[0], (f'{name} + n', rows[name].scores),
              (rival, runs.scores), sites, draws))
  return found


def scaling_comparisons(parts: Mapping[int, Mapping[str, Runs]], draws: Draws) -> list[Finding]:
  """Each trained regime at most sites against itself at fewest; tested are the same notes.

  `parts`: {number of sites: {regime: Runs}}.
  """
  fewest, most = min(parts), max(parts)
  before, after = with_everyone(parts[fewest]), with_everyone(parts[most])
  found = []
  for name in (name for name in after if name in before and after[name].trained):
    for score in WORDS:
      tested = after[name].summaries[0]['sites']
      sites = paired.having([*after[name].scores, *before[name].scores], tested, score)
      if sites:
        where = f'mean of {len(sites)} sites' if len(sites) > 1 else sites[0]
        found.append(_finding(
          'scaling', '', score, where,
          (f'{_called(name, own=False)}, {most} sites', after[name].scores),
          (f'{fewest} sites', before[name].scores), sites, draws))
  return found


def _finding(setting, label, score, where, ours, theirs, sites, draws: Draws) -> Finding:
  """`ours`, `theirs`: (name, answers of each seed)."""
  estimate = paired.difference(ours[1], theirs[1], sites, score, **draws._asdict())
  notes = sum(len(ours[1][0][site][score].notes) for site in sites)
  return Finding(
    setting, label, score, where, ours[0], theirs[0], estimate, notes, len(ours[1]))


def scores_of(rows: Iterable[Runs]) -> list[str]:
  """The scores that any row has, in the order of WORDS."""
  held = {name for runs in rows for answers in runs.scores
          for scores in answers.values() for name in scores}
  return [name for name in WORDS if name in held]

"""What a comparison found: seeds put together, tables, and a plain sentence for each difference."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.eval import metrics, paired
from fedmedjax.eval.paired import Answers, Estimate
from fedmedjax.page.blocks import Cell, Plot, Table
from fedmedjax.settings import LOCAL

# Scores as sentences call them.
WORDS = {
  'ner': 'entities', 're.modifier': 'modifiers', 're.triple': 'triples',
  're.end_to_end': 'relations end to end'}
# What federated methods are compared with, in this order, beside Fed-MedLoRA.
_BASELINES = ('zero_shot', 'single_site', 'centralised', 'fed_bert')
_REFERENCE = 'fed_medlora'
NONE = '-'


class Runs(NamedTuple):
  """A row of a comparison: one run for each of K seeds."""

  summaries: tuple[dict, ...]
  scores: tuple[Answers, ...]
  cross_site: tuple[dict[str, Answers], ...]  # each empty where sites have no adapters of their own
  everyone: tuple[Answers, ...]               # of the one adapter for all, likewise


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
    alone = f'{name} ({"each its own" if own else "all of them, counts added"})'
    yield (alone if name == 'single_site' else name), rows[name].scores
    if name == 'single_site' and all(
        row and paired.having(row.values(), sites, score) == list(sites)
        for row in rows[name].cross_site):
      site, answers = best_single_site(rows[name], sites, score)
      yield f'best single site ({site})', answers


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


def new_site_comparisons(parts: Mapping[str, Mapping[str, Runs]], draws: Draws) -> list[Finding]:
  """Each federated adapter, fine-tuned on n sentences, against these sentences alone.

  `parts`: {n in words: {arm: Runs}}.
  """
  found = []
  for label, rows in parts.items():
    sites = rows[LOCAL].summaries[0]['sites']
    for score in WORDS:
      for name in (arm for arm in rows if arm != LOCAL):
        if paired.having([*rows[name].scores, *rows[LOCAL].scores], sites, score):
          found.append(_finding(
            'new_site', label, score, sites[0], (f'{name} + n', rows[name].scores),
            (LOCAL, rows[LOCAL].scores), sites, draws))
  return found


def _finding(setting, label, score, where, ours, theirs, sites, draws: Draws) -> Finding:
  """`ours`, `theirs`: (name, answers of each seed)."""
  estimate = paired.difference(ours[1], theirs[1], sites, score, **draws._asdict())
  notes = sum(len(ours[1][0][site][score].notes) for site in sites)
  return Finding(
    setting, label, score, where, ours[0], theirs[0], estimate, notes, len(ours[1]))


def spread_table(rows: Mapping[str, Runs], score: str, draws: Draws) -> Table | None:
  """Who benefits from joining: worst site, spread, and each site's gain over training alone."""
  first = next(iter(rows.values())).summaries[0]
  having = {name: runs for name, runs in rows.items()
            if paired.having(runs.scores, first['sites'], score)}
  if len(first['sites']) < 2 or not having:
    return None
  sites = paired.having(
    [answers for runs in having.values() for answers in runs.scores], first['sites'], score)
  if not sites:
    return None
  alone, lines = having.get('single_site'), []
  for name, runs in having.items():
    values = {site: paired.mean_f1(runs.scores, [site], score, **draws._asdict()).value
              for site in sites}
    worst = min(values, key=values.get)
    gains = [_gain(runs, alone, site, score, draws) for site in sites]
    lines.append([
      name, Cell(f'{values[worst]:.3f}', worst), f'{max(values.values()) - values[worst]:.3f}',
      *gains])
  return Table(
    f'{_capital(score)}: who gains by joining',
    'Typed strict F1 of the worst site, that of the best one minus it, and what each site gains '
    'over ' + ('all single-site adapters, counts added' if first.get('partition') else
               'its single-site adapter') + ' [95 % by note].',
    ('regime', 'worst site', 'best − worst', *sites), lines)


def _gain(runs: Runs, alone: Runs | None, site: str, score: str, draws: Draws) -> Cell | str:
  if alone is None or runs is alone:
    return NONE
  estimate = paired.difference(runs.scores, alone.scores, [site], score, **draws._asdict())
  return Cell(f'{estimate.value:+.3f}', f'[{estimate.low:+.2f}, {estimate.high:+.2f}]')


def _capital(score: str) -> str:
  return WORDS[score][0].upper() + WORDS[score][1:]


def cross_site_table(rows: Mapping[str, Runs], score: str, draws: Draws) -> Table | None:
  """Every site's own adapter, and every adapter for all, on every site's test notes."""
  alone = rows.get('single_site')
  if alone is None or not all(alone.cross_site):
    return None
  first = alone.summaries[0]
  sites = [*first['sites'], *first['external']]
  return Table(
    f'{_capital(score)}: every adapter on every site', 'Typed strict F1.',
    ('adapter of', *(f'{site} (external)' if site in first['external'] else site
                     for site in sites)),
    [[name, *(
      f'{paired.mean_f1(answers, [site], score, **draws._asdict()).value:.3f}'
      if paired.having(answers, [site], score) else NONE for site in sites)]
     for name, answers in matrix(rows).items()])


def matrix(rows: Mapping[str, Runs]) -> dict[str, list[Answers]]:
  """Adapter -> its answers, one a seed: sites' own ones, then those for all."""
  found = {}
  if 'single_site' in rows:
    crossed = rows['single_site'].cross_site
    found |= {site: [row[site] for row in crossed] for site in crossed[0]}
  return found | {
    name: list(runs.scores) for name, runs in with_everyone(rows).items()
    if name != 'single_site' and not any(runs.cross_site)}


def curve(
  parts: Mapping[str, Mapping[str, Runs]], score: str, draws: Draws, *, external: bool = False
) -> dict[str, dict[str, Estimate]]:
  """{row of the comparison: {label of the part: mean over its tested sites}}.

  Args:
    parts: {label: {row: Runs}}.
    score: a key of WORDS.
    draws: of the intervals.
    external: the external cohorts are meant, not the sites that train.
  """
  found: dict[str, dict[str, Estimate]] = {}
  for label, rows in parts.items():
    for name, runs in rows.items():
      sites = paired.having(
        runs.scores, runs.summaries[0]['external' if external else 'sites'], score)
      if sites:
        found.setdefault(name, {})[label] = paired.mean_f1(
          runs.scores, sites, score, **draws._asdict())
  return found


def curve_table(
  title: str, note: str, labels: Sequence[str], found: Mapping[str, Mapping[str, Estimate]],
  score: str,
) -> Table:
  """Rows of a comparison x parts of a setting, see `curve`."""
  return Table(
    f'{title}: {WORDS[score]}', f'Typed strict F1 [95 % by note]. {note}', ('regime', *labels),
    [[name, *(_figure(values.get(label)) for label in labels)] for name, values in found.items()])


def curve_plot(
  title: str, x_label: str, x: Mapping[str, float], found: Mapping[str, Mapping[str, Estimate]],
  score: str,
) -> Plot:
  """The same as lines; `x`: where each label stands."""
  series = {name: [(x[label], *estimate) for label, estimate in values.items()]
            for name, values in found.items()}
  return Plot(
    f'{title}: {WORDS[score]}', 'Typed strict F1, with 95 % intervals by note.', x_label, series)


def _figure(estimate: Estimate | None) -> Cell | str:
  if estimate is None:
    return NONE
  value, low, high = estimate
  return Cell(f'{value:.3f}', f'[{low:.2f}, {high:.2f}]')


def scores_of(rows: Iterable[Runs]) -> list[str]:
  """The scores that any row has, in the order of WORDS."""
  held = {name for runs in rows for answers in runs.scores
          for scores in answers.values() for name in scores}
  return [name for name in WORDS if name in held]

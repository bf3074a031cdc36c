"""The sentence that a report of several regimes begins with: which won, by how much, on what."""

from collections.abc import Mapping

from fedmedjax.compare.comparisons import Draws, Runs, scores_of, with_everyone
from fedmedjax.compare.score_words import score_phrase
from fedmedjax.eval import paired


def headline(rows: Mapping[str, Runs], label: str, draws: Draws, *, external: bool = False) -> str:
  """One sentence about the regimes of a part: the first by mean score, and the next.

  The score is strict F1, or the first metric of an own task.

  The first is not chosen before its score is known, so its lead is a little too large; whether 0 is
  in the interval is said.

  Args:
    rows: {row: Runs}, all tested on the same notes.
    label: of the part, in words; '' = none.
    draws: of the intervals.
    external: the regimes are compared on the external cohorts, not on the sites that train.
  """
  rows = with_everyone(rows)
  first = next(iter(rows.values())).summaries[0]
  for score in scores_of(rows.values()):
    sites = paired.having(
      [answers for runs in rows.values() for answers in runs.scores],
      first['external' if external else 'sites'], score)
    if sites:
      break
  else:
    return ''
  means = {
    name: paired.mean_f1(runs.scores, sites, score, **draws._asdict())
    for name, runs in rows.items()}
  best, *others = sorted(means, key=lambda name: -means[name].value)
  seeds = len(rows[best].scores)
  sources = sum(len(rows[best].scores[0][site][score].sources) for site in sites)
  on = (f'{len(sites)} site{"s" * (len(sites) > 1)} ({sources} source{"s" * (sources > 1)}, '
        f'{seeds} seed{"s" * (seeds > 1)}{f", {label}" if label else ""})')
  reached = f'mean {score_phrase(score)}'
  if not others:
    own = means[best]
    interval = '' if own.low is None else f' [95 %: {own.low:.3f} to {own.high:.3f}]'
    return f'{best} reaches a {reached} of {own.value:.3f}{interval} on {on}.'
  gap = paired.difference(
    rows[best].scores, rows[others[0]].scores, sites, score, **draws._asdict())
  known = gap.low is not None
  if not (known or gap.value):
    return (f'Of {len(means)} regimes, {best} and {others[0]} have the highest {reached}, '
            f'{means[best].value:.3f}, on {on}.')
  interval = f' [95 %: {gap.low:+.3f} to {gap.high:+.3f}]' if known else ' (no interval)'
  begin = (f'Of {len(means)} regimes, {best} has the highest {reached}, {means[best].value:.3f}, '
           f'{gap.value:.3f}{interval} above the next, {others[0]}, on {on}')
  return f'{begin}; 0 is in the interval, so the two are not told apart.' if (
    known and gap.low <= 0) else f'{begin}.'

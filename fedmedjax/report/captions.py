"""What tables of scores say besides the scores: marks, captions, names."""

import textwrap
from collections.abc import Callable

from fedmedjax.eval.intervals import FEW_SOURCES
from fedmedjax.report.measures import unit_of
from fedmedjax.report.warnings import UNREADABLE, is_unreadable, zero_shot_left_out

# The mark of a regime whose answers are unreadable, and what tables say of it.
MARK = ' \N{DAGGER}'
MARKED = (
  f'{MARK.strip()} more than {UNREADABLE:.0%} of its answers are unreadable: its scores say more '
  'of their form than of what was found.')


def marked(name: str, summary: dict) -> str:
  """A regime's name in tables, with a mark where its answers are unreadable."""
  return name + MARK * is_unreadable(summary)


def few_sources(summary: dict) -> list[str]:
  """The sites of a run that few sources were tested of, in words; [] for an older run."""
  sites, numbers = (*summary.get('sites', ()), *summary['external']), summary.get('test_sources')
  return [f'{site} has {number}' for site, number in zip(sites, numbers or (), strict=False)
          if number < FEW_SOURCES]


def zero_shot(summary: dict) -> dict:
  """The scores of the untrained model that tables show, {} where there are none."""
  return {} if zero_shot_left_out(summary) else (summary.get('zero_shot') or {}).get('scores', {})


def caption(
  summary: dict, mean: Callable[[dict, list[str]], str], scored: str = 'a strict mean'
) -> str:
  """What the intervals of a run leave out, and the sites of which too little was tested.

  Where fewer sentences were answered before training, how many, and what the run has on them by
  `mean`, of (scores, sites), which is called as `scored` says.
  """
  few, zero = few_sources(summary), summary['zero_shot'] if zero_shot(summary) else {}
  said = ['Intervals are of one seed: how training varies is left out.'] * (
    len(summary.get('seeds', ())) < 2)
  if few:
    said.append(f'Those of few sources are unreliable ({", ".join(few)}).')
  if 'sentences' in zero:
    inside = [site for site in zero['trained'] if site not in summary['external']]
    said.append(
      f'Zero-shot is of {max(zero["sentences"].values())} {unit_of([summary])}s a cohort, on which '
      f'the run has {scored} of {mean(zero["trained"], inside)}.')
  return ' '.join(said)


def label(site: str, summary: dict) -> str:
  return f'{site} (external)' if site in summary['external'] else site


def folded(regime: str) -> str:
  """Names of models can be longer than a column should be."""
  return '\n'.join(textwrap.wrap(regime, 16))

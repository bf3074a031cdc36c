"""What a run has spent of its privacy budget, in words: for the terminal and for report.html."""

from collections.abc import Sequence

from fedmedjax.report.blocks import Section, Sentences, Table
from fedmedjax.report.runs import Run

_UNITS = {
  'example': 'an example (a sentence, with all that is asked about it)', 'note': 'a note',
  'patient': 'a patient (all notes of a source)', 'site': 'a site (all of its notes)'}
# Sites that a table names.
_LISTED = 24


def privacy_sentence(summary: dict) -> str:
  """The whole promise in one sentence, as an epsilon alone says nothing; '' = there is none."""
  spent = summary.get('privacy')
  if not spent:
    return ''
  adjacency = {'zero_out': 'put to zero', 'add_remove': 'added or left out'}[spent['adjacency']]
  who = 'the federation has' if spent['unit'] == 'site' else 'every site has'
  text = (
    f'differential privacy of {_UNITS[spent["unit"]]}, which is {adjacency}: {who} spent epsilon '
    f'{_rounded_up(spent["epsilon"])} at most, of {spent["budget"]:g}, at delta '
    f'{spent["delta"]:g}, with noise {spent["noise"]:.4g} times the clip of {spent["clip"]:g}; '
    f'sampling: {spent["sampling"]}; by {spent["accountant"]}')
  if spent.get('noise_from_seed'):
    text += ('; noise and draws are made of config.seed, so that it holds against nobody who knows '
             'the seed')
  if spent['rounds'] < spent['planned_rounds']:
    text += (f'; stopped after {spent["rounds"]} of {spent["planned_rounds"]} rounds, since the '
             'next one would have overspent')
  return text


def _rounded_up(epsilon: float) -> str:
  """To three digits behind the point, never less than it is."""
  if epsilon == float('inf'):
    return 'infinite'
  return f'{-(-epsilon * 1000 // 1) / 1000:.3f}'


def privacy_section(runs: Sequence[Run]) -> Section:
  """The promise of each run, and what each site has spent."""
  private = [run for run in runs if run.summary.get('privacy')]
  said = [
    (f'{run.name}: ' if len(runs) > 1 else '') + _capital(privacy_sentence(run.summary)) + '.'
    for run in private]
  rows = [
    [site if len(private) == 1 else f'{run.name}: {site}', _rounded_up(epsilon),
     f'{run.summary["privacy"]["budget"]:g}']
    for run in private for site, epsilon in run.summary['privacy']['sites'].items()]
  return Section(
    'privacy', 'Privacy', 'What the adapter and the numbers of a round may tell of a unit at most. '
    'Scores, descriptions of the notes and predictions are outside of it, as is everything that '
    'is in the run\'s folder beside the adapter; docs/privacy.md says what each number protects.'
    if private else '', [
      Sentences(said),
      Table('Spent', 'Epsilon of each site\'s own units, rounded up.' if len(private) != 1 or (
        private[0].summary['privacy']['unit'] != 'site') else
        'Epsilon of each site as a whole, rounded up.', ('site', 'epsilon', 'of'),
        rows[:_LISTED])])


def _capital(text: str) -> str:
  return text[:1].upper() + text[1:]

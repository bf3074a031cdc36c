"""The paper's claims beside what the study shows: a row each, negatives included.

A verdict says 'as in the paper' only where the interval excludes 0 on the paper's side and the
figure lies in the range that the paper states ("about 25" is 20 to 30). Everything else is named
for what it is.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from fedmedjax.compare.rows import DEPTH
from fedmedjax.compare.study_figures import (
  NOT_RUN,
  Row,
  Rows,
  chosen,
  commits,
  difference,
  figure,
  mean,
  pairs,
  saved,
  seeds,
  signed,
)
from fedmedjax.compare.study_units import EXTERNAL, JUDGES, POOL
from fedmedjax.eval import intervals
from fedmedjax.eval.intervals import Estimate

HEAD = ('claim of the paper', 'our evidence', 'verdict', 'command', 'commit')


class Evidence(NamedTuple):
  """What the study says of a claim."""

  text: str
  estimate: Estimate | None  # None = nothing that a verdict could be made of
  rows: list[Row]


class Claim(NamedTuple):
  """A claim of the paper."""

  words: str
  sizes: tuple[float, float] | None  # least and largest figure that it states; None = its sign only
  study: str                         # whose rows are the evidence
  evidence: Callable[[Rows], Evidence | None]
  sign: int = 1                      # of the difference that it claims


def verdict(estimate: Estimate, sizes: tuple[float, float] | None, sign: int = 1) -> str:
  """What a difference says of a claim.

  Args:
    estimate: ours.
    sizes: the claim's, least and largest; None where it states no size.
    sign: of the claimed difference, 1 or -1; 0 = it is a level, not a difference.
  """
  value, low, high, _ = estimate
  if low is None:
    return 'no interval yet: more seeds are needed'
  if sign and low <= 0 <= high:
    return 'not told apart from 0'
  if sign and value * sign < 0:
    return 'the opposite sign'
  if sizes is None:
    return 'the same sign; the paper states no size'
  if sizes[0] <= value <= sizes[1]:
    return 'as in the paper'
  # Of two negative figures the one nearer to 0 is the smaller effect.
  smaller = value < sizes[0] if value >= 0 else value > sizes[1]
  same, held = 'the same sign, ' if sign else '', low <= sizes[1] and sizes[0] <= high
  return f'{same}{"less" if smaller else "more"} than in the paper' + (
    f', whose range of {sizes[0]:g} to {sizes[1]:g} overlaps the interval' if held else '')


def _differs(study: str, ours: dict, theirs: dict, cohorts, what: str, *, best: bool = False):
  """Evidence of a difference between two kinds of rows, strict: by decoding where both are read."""
  def evidence(rows: Rows) -> Evidence | None:
    a, b = (chosen(rows[study], **name) for name in (ours, theirs))
    found, forced = (difference(a, b, cohorts, kind, best=best)
                     for kind in ('decoding', 'teacher_forced'))
    said = [signed(found)] * bool(found) + [f'teacher-forced {signed(forced)}'] * bool(forced)
    if not said:
      return None
    if not found:
      said.append("the untrained base's decoded answers do not follow the format")
    return Evidence('; '.join([f'{what}: {said[0]}', *said[1:], seeds(len(pairs(a, b)))]),
                    found or forced, [*a.values(), *b.values()])
  return evidence


def _new_site(rows: Rows) -> Evidence | None:
  held = chosen(rows['r4'], arm='federated', n=100)
  if not held:
    return None
  strict = mean(held, [EXTERNAL])
  return Evidence(
    f'{EXTERNAL}, 100 of its sentences on the federation: strict {figure(strict)}, lenient '
    f'{figure(mean(held, [EXTERNAL], match="lenient"))}; {seeds(len(held))}', strict,
    [*held.values()])


def _bytes(rows: Rows) -> Evidence | None:
  found = [row for row in rows['r5'] if row['unit']['model'] == 'Llama-3.1-8B']
  if not found:
    return None
  share = saved(found[0])
  return Evidence(
    f'Llama-3.1-8B, adapters in float32 against the model in bfloat16: {share:.2%} less, by its '
    'shapes', Estimate(share, share, share), found)


def _tagger(preset: str, setting: str, other: str = 'fed_medlora'):
  """Evidence of R6: a preset's F1 less another's in a setting, paired by seed."""
  def evidence(rows: Rows) -> Evidence | None:
    for row in rows['r6']:
      runs = {name: {one['seed']: one['f1'] for one in row['runs'] if 'f1' in one and (
        one['preset'], one['setting']) == (name, setting)} for name in (preset, other)}
      both = sorted(runs[preset].keys() & runs[other].keys())
      if both:
        apart = np.array([runs[preset][seed] - runs[other][seed] for seed in both])
        found = intervals.estimate(
          float(apart.mean()), [intervals.of_seeds(apart)], (-1.0, 1.0), test=True)
        return Evidence(
          f'word tagger: {preset} − {other}: {signed(found)}, {len(both)} seeds', found, [row])
    return None
  return evidence


_FED = {'regime': 'fed_medlora'}
_POOLED = (('centralised', 'equal steps'), (DEPTH, 'equal depth'))
CLAIMS = (
  Claim('up to 65 points of F1 over zero-shot', (0.0, 0.65), 'r1', _differs(
    'r1', _FED, {'regime': 'zero_shot'}, POOL, 'fed_medlora − zero_shot')),
  Claim('about 25 points over a single site', (0.2, 0.3), 'r1', _differs(
    'r1', _FED, {'regime': 'single_site'}, POOL, 'fed_medlora − best single site (by V)',
    best=True)),
  Claim('10 to 70 points on the external cohort, over zero-shot', (0.1, 0.7), 'r3', _differs(
    'r1', _FED, {'regime': 'zero_shot'}, [EXTERNAL], 'fed_medlora − zero_shot')),
  Claim('10 to 70 points on the external cohort, over a single site', (0.1, 0.7), 'r3', _differs(
    'r1', _FED, {'regime': 'single_site'}, [EXTERNAL], 'fed_medlora − best single site (by V)',
    best=True)),
  *(Claim(f'10 sites about 2 points under centralised (4 sites here), {words}', (-0.03, -0.01),
          'r1', _differs('r1', _FED, {'regime': held}, POOL, f'fed_medlora − {held}'), -1)
    for held, words in _POOLED),
  *(Claim(f'weights by validation loss help ({held}, one site wrong, V {words})', None, 'r2',
          _differs('r2', {'regime': held, 'v': v}, _FED, POOL, f'{held} − fed_medlora'))
    for v, words in (('sites', 'of the sites'), ('clean', "of the server's own"))
    for held in JUDGES[:1]),
  *(Claim(f'10 sites about 2 points under centralised, {words}', (-0.03, -0.01), 'r6', _tagger(
    'fed_medlora', 'sites_10', held), -1) for held, words in _POOLED),
  *(Claim(f'weights by validation loss help ({words})', None, 'r6', _tagger(
    'fed_medlora_plus', setting)) for setting, words in (
      ('iid', 'no site wrong'), ('wrong_1', '1 of 5 sites wrong'),
      ('wrong_largest', 'the largest wrong'))),
  Claim('a new site at 73 % strict, 85 % lenient', (0.70, 0.76), 'r4', _new_site, 0),
  Claim('98.5 % less communication', (0.9845, 0.9855), 'r5', _bytes, 0),
)
# Claims that no run of ours speaks of, and why.
OPEN = (
  ('more than 40 points over BERT on relations', 'there are no BERT weights here'),
  ('an 8B model trains in 16 GB, a 1B model on an RTX 3060 Ti', 'no such card was there'))


def lines(rows: Rows) -> Iterator[list[str]]:
  """The lines of the table, HEAD above them."""
  for claim in CLAIMS:
    found, command = claim.evidence(rows), f'`reproduce.sh {claim.study}`'
    if found is None:
      yield [claim.words, '-', NOT_RUN, command, '-']
    else:
      said = verdict(found.estimate, claim.sizes, claim.sign)
      yield [claim.words, found.text, said, command, commits(found.rows)]
  for words, why in OPEN:
    yield [words, f'none: {why}', NOT_RUN, '-', '-']

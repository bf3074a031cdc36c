"""The table of what sites contributed, of invented lines."""

from pathlib import Path

import pytest

from fedmedjax.report.contributions import contribution_section
from fedmedjax.report.runs import Run


def run(lines, kind='shapley'):
  return Run('mine', {'fed.contribution': kind}, {'scores': {}}, lines, Path('predictions'), {})


def line(number, values, error=(0.0, 0.0), steps=(3, 3), whole=0.5):
  return {
    'round': number, 'sites': ['icu', 'ward'], 'steps': list(steps), 'contribution': values,
    'contribution_error': list(error), 'contribution_whole': whole}


def test_means_intervals_and_sums_by_hand():
  """icu: .1, .3 and .2 are .2 on average, their standard deviation .1: t of 2 degrees of freedom is
  4.303, so .2 +- 4.303 * .1 / sqrt(3) = .248. The ward was absent in the third round: of -.1 and
  -.3, t of one degree is 12.706, times .1. The site of the larger sum comes first."""
  section = contribution_section([run([
    line(1, [.1, -.1]), line(2, [.3, -.3]), line(3, [.2, 0.0], steps=(3, 0))])])
  table, = section.blocks
  assert table.title == 'Shapley value of each site' and '1.5000' in table.note
  assert table.rows == [
    ['icu', ('+0.2000', '[-0.0484, +0.4484]'), '+0.6000', '3'],
    ['ward', ('-0.2000', '[-1.4706, +1.0706]'), '-0.4000', '2']]


def test_what_drawing_adds_and_a_single_round():
  """Standard errors .03 and .04 of two rounds make .05 of their sum; one round has no interval."""
  lines = [line(1, [.1, .2], (.03, 0.0)), line(2, [.1, .2], (.04, 0.0))]
  table, = contribution_section([run(lines)]).blocks
  assert [row[-1] for row in table.rows] == ['0.0000', '0.0500']
  alone, = contribution_section([run(lines[:1], 'leave_one_out')]).blocks
  assert alone.rows[1][1] == ('+0.1000', '') and alone.title.startswith('Leave-one-out')


@pytest.mark.parametrize('lines', [[], [{'round': 1, 'sites': ['icu'], 'steps': [3]}], [
  {'round': 1, 'sites': ['icu'], 'steps': [0], 'skipped': True}]])
def test_runs_that_did_not_ask_have_no_section(lines):
  assert contribution_section([run(lines)]).blocks == []

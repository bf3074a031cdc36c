"""The cost of runs: bytes sent, time, money, and F1 for the bytes sent."""

from collections.abc import Sequence

import numpy as np

from fedmedjax.report import charts
from fedmedjax.report.blocks import NONE, Chart, Charts, Figures, Section, Table
from fedmedjax.report.measures import Measure
from fedmedjax.report.rates import rates
from fedmedjax.report.runs import Run, tested
from fedmedjax.report.scores import mean_score, measured, number, score_at
from fedmedjax.report.svg import SERIES
from fedmedjax.runtime.phrases import duration


def megabytes(summary: dict) -> float:
  """Megabytes (1,000,000 bytes) sent in both directions in the whole run."""
  return (summary['bytes_up'] + summary['bytes_down']) / 1e6


def points_per_megabyte(run: Run) -> float:
  """100 times the mean score, divided by the megabytes sent; NaN when nothing was sent.

  The score is the run's first: strict F1 of entities, or else of modifiers; of an own task its
  first metric.
  """
  sent, measures = megabytes(run.summary), measured([run])
  return 100 * mean_score(run, measures[0]) / sent if sent and measures else np.nan


def cost_section(runs: Sequence[Run]) -> Section:
  """Tables and charts of bytes, time and, for endpoints, tokens and money."""
  own = [run for run in runs if run.own]
  blocks = [_cost_table(own)]
  paid = [run for run in own if run.summary.get('api')]
  if paid:
    blocks.append(_api_table(paid))
  sent = [run for run in own if megabytes(run.summary)]
  learnt = [_score_for_bytes(runs)] if any(_watched(run)[1].size for run in sent) else []
  if len(own) > 1 and sent:
    drawn = [_points(runs)] if measured(own) else []
    blocks.append(Charts([*drawn, *learnt, _bytes_of(runs)], [
      (place, run.name) for place, run in enumerate(runs[:len(SERIES)]) if run.own]))
  elif sent:
    blocks.append(Charts([*learnt, _bytes_both_ways(sent[0])]))
  return Section(
    'cost', 'What was sent, and what it cost',
    'Bytes are exact: every message of every round, headers included. The whole model in the same '
    'exchanges is what federated training without adapters would have sent.', blocks)


def _so_far(run: Run, *keys: str) -> tuple[np.ndarray, np.ndarray]:
  """(rounds, megabytes sent up to each)."""
  return (
    np.array([line['round'] for line in run.lines]),
    np.cumsum([sum(line[key] for key in keys) for line in run.lines]) / 1e6)


def _watched(run: Run) -> tuple[np.ndarray, np.ndarray]:
  """(megabytes sent so far, mean score on held-out sentences) of the rounds that have one."""
  _, sent = _so_far(run, 'bytes_up', 'bytes_down')
  pairs = [(x, line['validation_f1']) for x, line in zip(sent, run.lines, strict=True)
           if line.get('validation_f1') is not None]
  x, y = np.array(pairs, float).reshape(-1, 2).T
  return x, y


def _first(runs: Sequence[Run]) -> Measure | None:
  """The first measure of an own task, by which runs are judged; None = F1."""
  return next((measure for measure in measured(runs)[:1] if measure.of_text), None)


def _score_for_bytes(runs: Sequence[Run]) -> Chart:
  """Scores while training against what had been sent by then; what sends nothing has no line."""
  own = _first(runs)
  title, scored, what = (own.title, f'Mean {own.name}', 'rows') if own else (
    'F1', 'Mean strict F1', 'sentences')
  # Of a single run it has no colour, as colours mean sites then.
  alone = sum(run.own for run in runs) == 1
  series = [(None if alone else place, *_watched(run))
            for place, run in enumerate(runs[:len(SERIES)])
            if run.lines and megabytes(run.summary) and _watched(run)[1].size]
  return Chart(
    f'{title} while training, for the bytes sent', f'{scored} on a few held-out {what} of the '
    f'sites (config.eval.every), not on test {"rows" if own else "notes"}. What sends nothing is '
    'left out.', charts.lines(
      'cost-learnt', f'{title} on held-out {what} against the megabytes sent by then', series,
      'MB sent so far', whole=False, zero=all((y >= 0).all() for _, _, y in series)))


def _points(runs: Sequence[Run]) -> Chart:
  measure = measured(runs)[0]
  shown = [run if run.own else None for run in runs[:len(SERIES)]]
  x, y = (np.array([np.nan if run is None else of(run) for run in shown]) for of in (
    lambda run: megabytes(run.summary), lambda run: mean_score(run, measure)))
  title, note, scored = (measure.title, 'Mean of the sites.', f'Mean {measure.name}') if (
    measure.of_text) else ('F1', f'{measure.title}, mean strict F1.', 'Mean strict F1')
  return Chart(
    f'{title} against megabytes sent',
    note + ' Up and to the left is better.' * measure.shipped, charts.points(
      'cost-points', f'{scored} of every regime against the megabytes it sent', x, y, 'MB sent'))


def _bytes_of(runs: Sequence[Run]) -> Chart:
  series = [(place, *_so_far(run, 'bytes_up', 'bytes_down'))
            for place, run in enumerate(runs[:len(SERIES)])
            if run.lines and megabytes(run.summary)]
  return Chart('Megabytes sent so far', 'Up and down together.', charts.lines(
    'cost-bytes', 'Megabytes that every regime sent up to each round', series, 'round', zero=True))


def _bytes_both_ways(run: Run) -> Chart:
  return Chart(
    'Megabytes sent so far', 'Where one line hides the other, as much came down as went up.',
    charts.lines(
      'cost-bytes', 'Megabytes sent up to each round',
      [('n0', *_so_far(run, 'bytes_up')), ('n1', *_so_far(run, 'bytes_down'))], 'round',
      zero=True),
    [('n0', 'up, from the sites'), ('n1', 'down, to the sites')])


_COLUMNS = ('rounds', 'local steps', 'MB up', 'MB down', 'MB as whole model', 'saved',
            '{} points per MB', 'time')
_MEANING = ('MB are 1,000,000 bytes. {} points per MB: 100 times the mean {}, over all that '
            'was sent.')


def _cost_table(runs: Sequence[Run]) -> Table:
  rows = []
  for run in runs:
    s = run.summary
    sent, full = megabytes(s), s['bytes_full_model'] / 1e6
    rows.append([
      f'{s["rounds"]}', f'{s["local_steps"]:,}', f'{s["bytes_up"] / 1e6:,.1f}',
      f'{s["bytes_down"] / 1e6:,.1f}', f'{full:,.1f}' if full else NONE,
      f'{1 - sent / full:.2%}' if full else NONE, number(points_per_megabyte(run), '.3g'),
      duration(s['wall_seconds'])])
  own, title = _first(runs), 'Rounds, bytes, time'
  names = (own.title, own.name) if own else ('F1', 'strict F1')
  columns, meaning = [text.format(names[0]) for text in _COLUMNS], _MEANING.format(*names)
  if len(runs) == 1:
    return Table(title, meaning, ('', 'this run'), list(zip(columns, rows[0], strict=True)),
                 beside=True)
  return Table(title, meaning, ('regime', *columns), [
    [run.name, *row] for run, row in zip(runs, rows, strict=True)])


def _api_table(runs: Sequence[Run]) -> Table:
  def count(value):
    return NONE if value is None else f'{value:,}'

  return Table(
    'Endpoints', 'Tokens as the endpoint counted them; answers from the cache cost nothing again.',
    ('regime', 'questions', 'from the cache', 'tokens read', 'tokens written', 'USD', 'unanswered'),
    [[run.name, count(api['answers']), count(api['cached']), count(api['input_tokens']),
      count(api['output_tokens']), NONE if api['usd'] is None else f'{api["usd"]:.4f}',
      count(api['failed'])] for run in runs for api in [run.summary['api']]])


def key_figures(run: Run) -> Figures:
  """The key figures at the top of the page of a single run."""
  inside, outside = tested([run])
  entries = []
  for measure in measured([run])[:2]:
    known = {site: value for site in (*inside, *outside)
             if np.isfinite(value := score_at(run, site, measure))}
    scored = [site for site in inside if site in known]
    if scored:
      worst = min(scored, key=known.get)
      entries.append((number(mean_score(run, measure)),
                      f'{measure.words}, mean of {len(scored)} sites'))
      if len(scored) > 1:
        least = 'worst of them' if measure.shipped else 'lowest of them'
        entries.append((number(known[worst]), f'at the {least}, {worst}'))
    entries += [(number(known[site]), f'at {site}, external') for site in outside[:1]
                if site in known]
  s = run.summary
  if answered := rates(s, inside):
    entries += [
      (f'{count / answered.asked:.2f}', f'of answers {what} ({count:,} of {answered.asked:,})')
      for count, what in ((answered.copied, 'copy their sentence'),
                          (answered.unreadable, 'unreadable'))]
  if s['bytes_full_model']:
    entries.append((f'{megabytes(s):,.1f} MB', 'sent in all, ' + format(
      1 - megabytes(s) * 1e6 / s['bytes_full_model'], '.2%') + ' less than the whole model'))
  if s.get('adapter_parameters'):
    entries.append((f'{s["adapter_parameters"]:,}', 'trained parameters, ' + format(
      s['adapter_parameters'] / s['base_parameters'], '.2%') + ' of the model\'s'))
  return Figures([*entries, (duration(s['wall_seconds']), 'of training and evaluation')])

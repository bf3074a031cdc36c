"""Curves of losses, weights and updates by round: of a single run by site, else by regime."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fedmedjax.report import charts
from fedmedjax.report.blocks import Chart, Charts, Plot, Section, Sentences
from fedmedjax.report.runs import Run
from fedmedjax.report.scores import left_out
from fedmedjax.report.svg import SERIES

# Most rounds or sites that a sentence about skipped rounds or left-out sites names.
_NAMED = 6
# Most regimes whose weights are drawn.
_WEIGHED = 6


class Curve(NamedTuple):
  """A number that each site of a round has."""

  key: str            # of a line of metrics.jsonl
  title: str
  note: str           # what the number is, in words
  zero: bool = False  # whether the y axis begins at 0


CURVES = (
  Curve('train_loss', 'Training loss',
        'Mean over the local steps of a round, in nats per target token. Less is better.'),
  Curve('validation_loss', '', ''),  # see SIGNALS
  Curve('weights', 'Weight of a site', 'Its share in the average of the round.', zero=True),
  Curve('update_norm', 'Length of an update',
        'How far a site\'s adapter moved in the round (Euclidean norm).', zero=True),
  Curve('cosine', 'Agreement',
        'Cosine of the angle between a site\'s update and the server\'s step: 1 = same direction.'),
)

# Of 'validation_loss', by config.fed.signal: title and note.
SIGNALS = {
  'loss': ('Validation loss',
           'Of each site\'s adapter on the sentences held out, in nats per target token.'),
  'answer': ('Validation loss of an answer',
             'Of each site\'s adapter on the sentences held out, in nats per answer.'),
  'peer': ('Judgement by the other sites',
           'How many nats per answer a site\'s adapter loses on the other sites\' held-out '
           'sentences beyond the others\' mean, the median over these sites. Less is better.'),
  'loo': ('Average with a site against without it',
          'How many nats per answer the average loses with a site beyond what it loses without it, '
          'on the other sites\' held-out sentences, against the other sites. Less is better.'),
  'grad': ('Slope along an update',
           'How fast the average\'s loss on the other sites\' held-out sentences rises with a '
           'site\'s weight, in nats per answer, against the other sites. Less is better.'),
  'product_norm': ('Norm of a product', 'Minus the logarithm of the norm of a site\'s A B.'),
}
# Of these a mean over sites says something.
_ABSOLUTE = ('loss', 'answer')


def _signal(run: Run) -> str:
  return run.config.get('fed.signal', 'loss')


def _curves_of(run: Run) -> list[Curve]:
  """CURVES, what the weights were made from by its name and unit."""
  title, note = SIGNALS[_signal(run)]
  return [curve if curve.title else curve._replace(title=title, note=note) for curve in CURVES]


def by_site(lines: Iterable[dict], key: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """{site: (rounds f[N], values f[N])} of `key`, of the rounds in which the site has a value."""
  pairs_of: dict[str, list] = {}
  for line in lines:
    for site, value in zip(line['sites'], line.get(key) or (), strict=False):
      if value is not None:
        pairs_of.setdefault(site, []).append((line['round'], value))
  return {site: tuple(np.array(pairs, float).T) for site, pairs in pairs_of.items()}


def spread(
  curves: dict[str, tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """(rounds, 10 % quantile, median, 90 % quantile) over the sites of each round, f[N] each."""
  values: dict[float, list] = {}
  for rounds, site_values in curves.values():
    for number_, value in zip(rounds, site_values, strict=True):
      values.setdefault(number_, []).append(value)
  rounds = np.array(sorted(values))
  return rounds, *np.array([np.percentile(values[n], (10, 50, 90)) for n in rounds]).T


def training_section(runs: Sequence[Run]) -> Section:
  """Charts by round, and sentences about skipped rounds and sites that were left out."""
  trained = [run for run in runs if run.lines]
  blocks = [Sentences(_incidents(trained))]
  if sum(run.own for run in runs) > 1:
    blocks += [_run_curves(runs), _weights(trained)]
  elif trained:
    blocks.append(_site_curves(trained[0]))
  return Section(
    'rounds', 'Rounds', 'What happened from round to round. A site that sat out a round has no '
    'point there.', blocks)


def _incidents(runs: Sequence[Run]) -> list[str]:
  """Sentences about rounds that were skipped and sites that were left out."""
  sentences = []
  for run in runs:
    name = f'{run.name}: ' if len(runs) > 1 else ''
    skipped = [str(line['round']) for line in run.lines if line.get('skipped')]
    left = [f'{site} in round {line["round"]}' for line in run.lines
            for site in line.get('quarantined', ())]
    for events, what in (
        (skipped, 'skipped, as no site had anything usable to send: round'),
        (left, 'left out for a loss or an update that is not finite or explodes:')):
      if events:
        more = f' and {len(events) - _NAMED} more' if len(events) > _NAMED else ''
        sentences.append(f'{name}{what} {", ".join(events[:_NAMED])}{more}.')
    if groups := groups_of(run.lines):
      sentences.append(f'{name}sites were grouped by their updates: ' + '; '.join(
        f'{number}: {", ".join(sites)}' for number, sites in enumerate(groups, start=1)) + '.')
  return sentences


def groups_of(lines: Sequence[dict]) -> list[list[str]]:
  """The sites of each cluster, by the last round that names them; [] where there are none."""
  of = next((dict(zip(line['sites'], line['clusters'], strict=True))
             for line in reversed(lines) if 'clusters' in line), {})
  return [[site for site, own in of.items() if own == number]
          for number in sorted(set(of.values()))]


def _drawing(
  key: str, curve: Curve, curves: dict, coloured: bool = True
) -> tuple[Chart, bool]:
  """(chart of all sites, whether they are too many for a line each).

  `coloured`: whether a colour means a site on the page; otherwise it means a regime.
  """
  many = len(curves) > len(SERIES)
  if many:
    rounds, low, middle, high = spread(curves)
    place = 0 if coloured else 'n0'
    drawing = charts.lines(
      key, f'{curve.title} by round, median over sites', [(place, rounds, middle)], 'round',
      bands=[(place, rounds, low, high)], zero=curve.zero)
  else:
    places = range(len(curves)) if coloured else charts.neutral(len(curves))
    drawing = charts.lines(
      key, f'{curve.title} by round, a line for each of {", ".join(curves)}',
      [(place, *values) for place, values in zip(places, curves.values(), strict=True)], 'round',
      zero=curve.zero)
  return Chart(curve.title, curve.note, drawing), many


def _site_curves(run: Run) -> Charts:
  names = list(dict.fromkeys(site for line in run.lines for site in line['sites']))
  drawn, banded = [], False
  for curve in _curves_of(run):
    curves = by_site(run.lines, curve.key)
    if not curves:
      continue
    chart, many = _drawing(f'round-{curve.key}', curve, _ordered(curves, names))
    drawn.append(chart)
    banded |= many
  drawn += _server_curves(run)
  note = (f'{len(names)} sites: a line is the median over the sites of a round, the band leaves '
          'out the lowest and the highest tenth.') if banded else ''
  return Charts(drawn, [] if banded else list(enumerate(names)), note=note)


def _server_curves(run: Run) -> list[Chart]:
  """The chart of the product gap, one number for each round; [] when no round has it."""
  points = [(line['round'], line['product_gap']) for line in run.lines
            if line.get('product_gap') is not None]
  if not points:
    return []
  rounds, gaps = np.array(points, float).T
  return [Chart(
    'Gap of averaged factors',
    'How far the product of the averages of A and B is from the average of their products, as a '
    'share of it.', charts.lines(
      'round-gap', 'Gap between product of averages and average of products, by round',
      [(None, rounds, gaps)], 'round', zero=True))]


def _run_curves(runs: Sequence[Run]) -> Charts:
  """Losses, a line for each regime, in the colour that it has in all charts."""
  drawn, places, shown = [], set(), list(enumerate(runs[:len(SERIES)]))
  # What is in another unit has a chart of its own.
  alike = [(CURVES[0], '', shown)] + [
    (_curves_of(some[0][1])[1], name, some) for name in _ABSOLUTE
    if (some := [(place, run) for place, run in shown if _signal(run) == name])]
  for curve, name, some in alike:
    series = []
    for place, run in some:
      curves = by_site(run.lines, curve.key)
      if curves:
        rounds = sorted({n for ns, _ in curves.values() for n in ns})
        means = [np.mean([values[ns == n][0] for ns, values in curves.values() if n in ns])
                 for n in rounds]
        series.append((place, np.array(rounds), np.array(means)))
    places |= {place for place, *_ in series}
    if series:
      drawn.append(Chart(
        curve.title, f'{curve.note} Plain mean over the sites of a round.', charts.lines(
          f'runs-{curve.key}-{name}'.rstrip('-'), f'{curve.title} of every regime by round',
          series, 'round')))
  return Charts(drawn, [(i, runs[i].name) for i in sorted(places)], note=left_out(
    (len(runs), len(SERIES), 'rows')))


def _weights(runs: Sequence[Run]) -> Charts:
  """The weights of sites in the federated regimes, a chart for each."""
  curve, drawn, names, banded = CURVES[2], [], {}, False
  # A regime that sends nothing averages nothing.
  several = [run for run in runs if any(
    len(line['sites']) > 1 and line['bytes_up'] for line in run.lines)]
  for index, run in enumerate(several[:_WEIGHED]):
    names |= dict.fromkeys(site for line in run.lines for site in line['sites'])
    curves = by_site(run.lines, curve.key)
    chart, many = _drawing(f'weights-{index}', curve, _ordered(curves, names), coloured=False)
    drawn.append(chart._replace(title=f'Weights of {run.name}'))
    banded |= many
  note = 'A line is the median over the sites of a round, the band leaves out a tenth on either ' \
         'side.' if banded else ''
  if len(several) > _WEIGHED:
    note += f' Drawn are the first {_WEIGHED} of {len(several)} regimes.'
  return Charts(drawn, [] if banded else list(
    zip(charts.neutral(len(names)), names, strict=True)), note=note.strip())


def _ordered(curves: dict, names: Iterable[str]) -> dict:
  """One curve for each site, which may be empty, in the order of `names`: colours stay the same."""
  return {name: curves.get(name, (np.zeros(0), np.zeros(0))) for name in names}


def plot_section(plots: Sequence[Plot]) -> list[Charts]:
  """A chart for each plot."""
  blocks = []
  for index, plot in enumerate(plots):
    series, bands = [], []
    for place, points in enumerate(list(plot.series.values())[:len(SERIES)]):
      x, y, low, high = np.array(
        [[np.nan if v is None else v for v in point] for point in points], float).T
      series.append((place, x, y))
      bands.append((place, x, low, high))
    drawing = charts.lines(
      f'plot-{index}', f'{plot.title}: {", ".join(plot.series)}', series, plot.x_label,
      bands=bands)
    blocks.append(Charts(
      [Chart(plot.title, plot.note, drawing)], list(enumerate(plot.series))[:len(SERIES)]))
  return blocks

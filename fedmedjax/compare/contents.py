"""The tables, plots and sentences of a scenario, from its finished runs."""

from collections.abc import Sequence
from typing import NamedTuple

from fedmedjax.compare import comparisons, tables
from fedmedjax.compare.comparisons import Comparison, Draws, Runs
from fedmedjax.compare.headline import headline
from fedmedjax.report.blocks import Plot, Table
from fedmedjax.report.measures import unit_of


class Contents(NamedTuple):
  """What a scenario's report shows beside the scores of the single rows."""

  tables: list[Table]
  plots: list[Plot]
  comparisons: list[Comparison]
  missing: Sequence[str] = ()  # sentences: what was not compared, and why
  first: str = ''              # the sentence that the report begins with


def contents_of(
  scenario: str, by_label: dict[str, dict[str, Runs]], draws: Draws
) -> Contents:
  """The contents of a scenario.

  Args:
    scenario: a key of `scenarios.SCENARIOS`.
    by_label: {label of the part: {row: its runs}}.
    draws: of all bootstrap intervals.
  """
  if scenario == 'in_domain':
    return _regimes(by_label[''], draws)
  return _curves(scenario, by_label, draws)


def _regimes(rows: dict[str, Runs], draws: Draws) -> Contents:
  """The contents of in_domain, which has a single part."""
  builds = (
    tables.seeds_table, tables.spread_table, tables.cross_site_table)
  shown = [
    build(rows, score, draws) for score in comparisons.scores_of(rows.values()) for build in builds]
  return Contents(
    [table for table in shown if table], [],
    comparisons.corrected(comparisons.comparisons(rows, 'in_domain', '', draws)), _missing(rows),
    headline(rows, '', draws))


def _missing(rows: dict[str, Runs]) -> list[str]:
  """Sentences about what in_domain cannot compare, for want of answers or of a choice."""
  alone = rows.get('single_site')
  if alone is None or len(alone.summaries[0]['sites']) < 2:
    return []
  if not all(alone.cross_site):
    return [
      'No method is compared with the best single site, nor is any adapter tested at another site: '
      'that takes config.eval.cross_site=True.']
  if comparisons.chosen_sites(alone) is None:
    return [
      'No method is compared with the best single site: it is chosen on validation notes, and the '
      'run of single_site has none (config.data.validation_examples) or is of an older version '
      '(delete its summary.json, and the same command scores it again).']
  return []


# Scenario -> title of its table, and how sentences name a part by its label.
_TITLES = {
  'leave_one_out': ('Each site, left out of training', 'trained without {}'),
  'scaling': ('Notes dealt out to so many sites', '{} sites'),
  'new_site': ('A new site, fine-tuned on so many of its {}s', 'n = {}')}


def _curves(scenario: str, by_label: dict[str, dict[str, Runs]], draws: Draws) -> Contents:
  """Contents of a scenario of several parts: a column for each; a plot if labels are numbers."""
  contents, (title, words) = Contents([], [], []), _TITLES[scenario]
  tested = 'external' if scenario == 'leave_one_out' else 'sites'
  unit = unit_of([
    runs.summaries[0] for rows in by_label.values() for runs in rows.values()])
  title = (title if unit == 'sentence' else title.replace('Notes', 'Rows')).format(unit)
  steps = ', '.join(
    f'{label}: {max(runs.summaries[0]["local_steps"] for runs in rows.values()):g}'
    for label, rows in by_label.items())
  for score in comparisons.scores_of(
      runs for rows in by_label.values() for runs in rows.values()):
    curves = tables.curve(by_label, score, draws, external=tested == 'external')
    left_out = max((
      tables.cautioned(rows.values(), next(iter(rows.values())).summaries[0][tested], score)
      for rows in by_label.values()), key=len)
    contents.tables.append(tables.curve_table(
      title, f'Local steps in all, {steps}{left_out}', by_label, curves, score))
    if scenario != 'leave_one_out':
      x = {label: _place(label, rows) for label, rows in by_label.items()}
      contents.plots.append(tables.curve_plot(
        title, f'{unit}s' if scenario == 'new_site' else 'sites', x, curves, score))
  by_words = {words.format(label): rows for label, rows in by_label.items()}
  if scenario == 'new_site':
    contents.comparisons.extend(
      comparisons.new_site_comparisons(by_words, draws, words.format(0)))
  else:
    for label, rows in by_words.items():
      contents.comparisons.extend(comparisons.comparisons(rows, scenario, label, draws))
  if scenario == 'scaling' and len(by_label) > 1:
    contents.comparisons.extend(comparisons.scaling_comparisons(
      {int(label): rows for label, rows in by_label.items()}, draws))
  # Every part says as much; of the last one most is known, or most sites trained.
  label, rows = list(by_words.items())[-1]
  return contents._replace(
    comparisons=comparisons.corrected(contents.comparisons),
    first=headline(rows, label, draws, external=tested == 'external'))


def _place(label: str, rows: dict[str, Runs]) -> float:
  """Where a part stands on the x axis: its number; for 'all', its number of training examples."""
  first = next(iter(rows.values())).summaries[0]
  return float(label) if label.isdigit() else float(sum(first['train_examples']))

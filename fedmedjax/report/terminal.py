"""Tables for the terminal."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from fedmedjax.data.site import SiteData
from fedmedjax.report.captions import MARKED, caption, folded, label, marked, zero_shot
from fedmedjax.report.means import Means, means_of
from fedmedjax.report.measures import MEASURES, asks_text
from fedmedjax.report.privacy import privacy_sentence
from fedmedjax.report.rates import groups, out_of, rates
from fedmedjax.report.runs import PREDICTIONS, method_name
from fedmedjax.report.set_aside import set_aside
from fedmedjax.report.text_tables import (
  interval,
  is_of_rows,
  row_table,
  text_score_table,
  with_mean,
)
from fedmedjax.report.warnings import is_unreadable
from fedmedjax.runtime.phrases import duration, many
from fedmedjax.runtime.progress import Reporter

# Sites of a partition that the table lists.
_LISTED = 12


def site_table(
  sites: Sequence[SiteData], tested: Sequence[SiteData], external: Sequence[SiteData],
  server: Sequence[SiteData] = (),
) -> Table:
  """What each site holds, and what reading it set aside.

  Args:
    sites: that train; when they are not the `tested` ones, their notes are those of `tested`.
    external: tested, too.
    server: whose notes are the server's validation set.
  """
  dealt_out = [] if sites == tested else sites
  if is_of_rows(tested):
    return row_table((*dealt_out[:_LISTED], *tested), external, server, len(dealt_out) - _LISTED)
  table = Table(title='Sites')
  for name in ('site', 'types', 'train', 'validation', 'test', 'in no training note', 'set aside'):
    table.add_column(name, justify='right' if name in ('train', 'validation', 'test') else 'left')
  roles = {site.name: ' (external)' for site in external} | {
    site.name: " (the server's)" for site in server}
  for site in (*dealt_out[:_LISTED], *tested, *external, *server):
    report = site.report
    unseen = report.get('held_out_test_entities_percent')
    counts = (
      ' + '.join(str(len(getattr(part, key))) for part in site.tasks)
      for key in ('train', 'validation', 'test'))
    table.add_row(
      site.name + roles.get(site.name, ''), _asked(site), *counts,
      '-' if unseen is None else f'{unseen} %', set_aside(report) or '-')
  if len(dealt_out) > _LISTED:
    table.caption = f'the first {_LISTED} of {len(dealt_out)} sites that train, then what is tested'
  return table


def _asked(site: SiteData) -> str:
  """Entity types in full, modifier types by their number: there are up to 16."""
  return ' + '.join(
    f'{len(part.ask.types)} modifiers' if part.ask.given else ', '.join(part.ask.types)
    for part in site.tasks)


def _f1(scores: dict | None, kind: str, between: str = ' ') -> str:
  if scores is None:
    return '-'
  entry = scores[kind]['typed']
  if entry['ci95'] is None:
    return f'{entry["f1"]:.3f}'
  low, high = entry['ci95']
  return f'{entry["f1"]:.3f}{between}[{low:.2f},{high:.2f}]'


def score_table(summary: dict, means: Means | None = None) -> Table:
  """Typed F1 of every site, strict and lenient, beside that of the adapter for all, where sites
  have their own, and zero-shot, where it followed the format of answers.

  Args:
    summary: of the run.
    means: its means with intervals; None = there are no intervals of means.
  """
  table = Table(
    title=f'Typed F1, {method_name(summary)}, seed {summary["seed"]} [95 % by source]',
    caption=caption(summary, lambda scores, sites: mean_f1(scores, sites, 'strict')))
  zero, everyone = zero_shot(summary), (summary.get('global') or {}).get('scores', {})
  kinds = ('strict', 'lenient')
  others = [('global', everyone)] * bool(everyone) + [('zero-shot', zero)] * bool(zero)
  for name in ('site', *kinds, *(f'{name} {kind}' for name, _ in others for kind in kinds)):
    table.add_column(
      name, justify='left' if name == 'site' else 'right', no_wrap=name == 'site')
  # Six columns fit a terminal only with the intervals below the figures.
  between = '\n' if everyone else ' '
  parts = [('scores', summary['scores']),
           *((name.replace('-', '_'), scores) for name, scores in others)]

  def row(site: str) -> list[str]:
    return [label(site, summary), *(
      _f1(scores.get(site, {}).get('ner'), kind, between) for _, scores in parts for kind in kinds)]

  with_mean(table, summary, row, lambda inside: [
    mean_f1(scores, inside, kind)
    + interval(means, part, scores, inside, MEASURES[0], kind, between)
    for part, scores in parts for kind in kinds])
  return table


# Scores of relations, as the tables call them; see `evaluate.score`.
_LINKS = {'modifier': 'modifiers', 'triple': 'triples', 'end_to_end': 'end to end'}


def relation_table(summary: dict) -> Table:
  """Typed F1 of every site's relations, beside the zero-shot modifiers."""
  table = Table(title=(
    f'Typed F1 of relations, {method_name(summary)}, seed {summary["seed"]} [95 % by source]'),
    caption=caption(summary, lambda scores, sites: mean_link_f1(
      scores, sites, 'modifier', 'strict')))
  zero = zero_shot(summary)
  columns = [
    (f'{word} {kind}', summary['scores'], name, kind)
    for name, word in _LINKS.items() for kind in ('strict', 'lenient')
  ] + [('zero-shot modifiers strict', zero, 'modifier', 'strict')] * bool(zero)
  table.add_column('site', no_wrap=True)
  for title, *_ in columns:
    table.add_column(title, justify='right', min_width=11)

  def row(site: str) -> list[str]:
    # So many columns fit a terminal only with the intervals below the figures.
    return [label(site, summary), *(
      _f1(scores.get(site, {}).get('re', {}).get(name), kind, '\n')
      for _, scores, name, kind in columns)]

  with_mean(table, summary, row, lambda inside: [
    mean_link_f1(scores, inside, name, kind) if scores else '-'
    for _, scores, name, kind in columns])
  return table


def mean_f1(scores: dict, sites: Sequence[str], kind: str) -> str:
  """Plain mean over sites of the entities' typed micro F1, as the tables show it."""
  return _mean([scores[site]['ner'] for site in sites if 'ner' in scores[site]], kind)


def has_relations(scores: dict, name: str = 'modifier') -> bool:
  return any(name in tasks.get('re', {}) for tasks in scores.values())


def mean_link_f1(scores: dict, sites: Sequence[str], name: str, kind: str) -> str:
  """Plain mean of a score of relations over the sites that have it, as the tables show it."""
  found = (scores[site].get('re', {}).get(name) for site in sites)
  return _mean([entry for entry in found if entry], kind)


def _mean(entries: Sequence[dict], kind: str) -> str:
  f1 = [entry[kind]['typed']['f1'] for entry in entries]
  return f'{sum(f1) / len(f1):.3f}' if f1 else '-'


def cost_lines(summary: dict) -> list[str]:
  """What the run sent and took, a line each."""
  sent, full = summary['bytes_up'] + summary['bytes_down'], summary['bytes_full_model']
  adapter, base = summary['adapter_parameters'], summary['base_parameters']
  lines = [f'adapter {adapter:,} parameters, {adapter / base:.3%} of the base\'s {base:,}']
  if full:
    lines.append(
      f'sent {sent / 1e6:,.1f} MB (up {summary["bytes_up"] / 1e6:,.1f}, down '
      f'{summary["bytes_down"] / 1e6:,.1f}); the full model would be {full / 1e6:,.1f} MB: '
      f'{1 - sent / full:.2%} less')
  if summary['simulated_seconds']:
    lines.append(f'{duration(summary["simulated_seconds"])} in all on the simulated sites')
  lines += filter(None, [_answers(summary)])
  speed, predicted = summary['examples_per_second'], summary.get('predicted_peak_bytes')
  lines.append(
    f'{duration(summary["wall_seconds"])} of training and evaluation, '
    f'{duration(summary["compile_seconds"])} of it compiling'
    + (f', {speed:.2f} training examples/s' if speed else '')
    + f', peak memory {summary["peak_memory_bytes"] / 2**30:.1f} GiB'
    + (f' ({predicted / 2**30:.1f} predicted)' if predicted else ''))
  return lines


def _answers(summary: dict) -> str:
  """How many answers copy their sentence and cannot be read, the external cohorts apart."""
  said = []
  for where, sites in zip(('', ' of external cohorts'), groups(summary), strict=True):
    if found := rates(summary, sites):
      said.append(
        f'exact copies{where} {out_of(found.copied, found.asked)}, unreadable outputs '
        f'{out_of(found.unreadable, found.asked)}')
  # Older runs have means over sites only; answers of own tasks are neither.
  return '; '.join(said) or ('' if summary['copy_rate'] is None else (
    f'exact copies {summary["copy_rate"]:.1%}, unreadable outputs '
    f'{summary["parse_failure_rate"]:.1%}'))


def api_lines(summary: dict) -> list[str]:
  """What a run behind an endpoint asked and cost, a line each."""
  api = summary['api']
  read, written = ('?' if api[f'{way}_tokens'] is None else f'{api[f"{way}_tokens"]:,}'
                   for way in ('input', 'output'))
  lines = [
    f'{many(api["answers"], "question")}, {many(api["shots"], "solved example")} before each; '
    f'{api["cached"]} answered from the cache, {many(api["requests"], "request")}',
    f'{read} tokens read, {written} written'
    + ('' if api['usd'] is None else f': {api["usd"]:.4f} USD')
    + ('; the endpoint did not count them all' if '?' in (read, written) else ''),
    '; '.join(filter(None, (_answers(summary), duration(summary['wall_seconds']))))]
  if api['failed']:
    lines.append(
      f'warning: {api["failed"]} questions have no answer and score nothing, the first for: '
      f'{api["failure"]}; the same command asks them again')
  return lines


def show(summary: dict, reporter: Reporter, workdir: Path) -> None:
  """The end of a run on the terminal, and its warnings, which are said again in the last lines.

  Args:
    summary: of the run.
    reporter: is told.
    workdir: of the run, where its counts are.
  """
  means = means_of(workdir, workdir / PREDICTIONS, summary['seed'])
  if any('ner' in tasks for tasks in summary['scores'].values()):
    reporter.say(score_table(summary, means))
  if has_relations(summary['scores']):
    reporter.say(relation_table(summary))
  if asks_text(summary):
    reporter.say(text_score_table(summary, means))
  for line in (api_lines if 'api' in summary else cost_lines)(summary):
    reporter.say(line)
  if promise := privacy_sentence(summary):
    reporter.say(promise)
  for warning in summary.get('warnings', ()):
    reporter.warn(f'{method_name(summary)}, seed {summary["seed"]}: {warning}')


def with_global(rows: dict[str, dict]) -> dict[str, dict]:
  """The regimes' summaries, those whose sites have adapters of their own a second time: with the
  scores of the one adapter for all."""
  out = {}
  for regime, row in rows.items():
    out[regime] = row
    if row.get('global'):
      out[f'{regime} (global)'] = row | row['global']
  return out


def compare_table(rows: dict[str, dict], sites: Sequence[str], external: Sequence[str]) -> Table:
  """Regime x site: typed strict F1, the mean over sites, and what was sent."""
  table = Table(
    title='Typed strict F1 by regime [95 % by source]',
    caption=MARKED if any(map(is_unreadable, rows.values())) else None)
  table.add_column('regime', no_wrap=True)
  # Blanks, so that long names wrap between words.
  inside, outside = ([name.replace('_', ' ') for name in names] for names in (sites, external))
  outside = [f'{name} (external)' for name in outside]
  for column in (*inside, 'mean', *outside, 'mean lenient', 'steps', 'MB sent'):
    # An interval is 11 characters.
    table.add_column(column, justify='right', min_width=11 if column in inside + outside else 5)
  for regime, row in rows.items():
    scores = row['scores']
    table.add_row(
      folded(marked(regime, row)),
      *(_f1(scores[site].get('ner'), 'strict', '\n') for site in sites),
      mean_f1(scores, sites, 'strict'),
      *(_f1(scores[site].get('ner'), 'strict', '\n') for site in external),
      mean_f1(scores, sites, 'lenient'), str(row['local_steps']),
      f'{(row["bytes_up"] + row["bytes_down"]) / 1e6:,.0f}')
  return table


def relation_tables(
  rows: dict[str, dict], sites: Sequence[str], external: Sequence[str]
) -> list[Table]:
  """Regime x site for each score of relations: typed strict F1, for the regimes that have it."""
  tables = []
  for name, word in _LINKS.items():
    having = {marked(regime, row): row['scores'] for regime, row in rows.items()
              if has_relations(row['scores'], name)}
    table = Table(title=f'Typed strict F1 of {word} [95 % by source]')
    table.add_column('regime', no_wrap=True)
    for column in (*sites, 'mean', *(f'{site} (external)' for site in external)):
      table.add_column(column.replace('_', ' '), justify='right')
    for regime, scores in having.items():
      cells = {
        site: _f1(scores[site].get('re', {}).get(name), 'strict', '\n')
        for site in (*sites, *external)}
      table.add_row(
        folded(regime), *(cells[site] for site in sites),
        mean_link_f1(scores, sites, name, 'strict'), *(cells[site] for site in external))
    tables += [table] if having else []
  return tables

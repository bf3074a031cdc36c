"""Tables for the terminal and for the README."""

import textwrap
from collections.abc import Sequence

from rich.table import Table

from fedmedjax.data.site import SiteData
from fedmedjax.progress import Reporter

# What a reading can report having set aside: key -> how the table calls it.
_DROPPED = {
  'used_nested': 'nested', 'used_crossing': 'crossing sentences', 'too_long': 'too long',
  'used_invalid_pairs': 'modifiers of a wrong type',
  'discontinuous': 'discontinuous', 'leaked_documents': 'leaked notes',
  'cut_sentences': 'cut sentences', 'unlabelled': 'entities without a word of their own',
}


# Sites of a partition that the table lists.
_LISTED = 12


def site_table(
  sites: Sequence[SiteData], tested: Sequence[SiteData], external: Sequence[SiteData]
) -> Table:
  """What each site holds, and what reading it set aside.

  Args:
    sites: that train; when they are not the `tested` ones, their notes are those of `tested`.
    external: tested, too.
  """
  table = Table(title='Sites')
  for name in ('site', 'types', 'train', 'validation', 'test', 'in no training note', 'set aside'):
    table.add_column(name, justify='right' if name in ('train', 'validation', 'test') else 'left')
  dealt_out = [] if sites == tested else sites
  for site in (*dealt_out[:_LISTED], *tested, *external):
    report = site.report
    aside = ', '.join(f'{report[k]} {name}' for k, name in _DROPPED.items() if report.get(k))
    unseen = report.get('held_out_test_entities_percent')
    table.add_row(
      site.name + (' (external)' if site in external else ''), ', '.join(site.types),
      str(report['train_sentences']), str(report['validation_sentences']),
      str(report['test_sentences']), '-' if unseen is None else f'{unseen} %', aside or '-')
  if len(dealt_out) > _LISTED:
    table.caption = f'the first {_LISTED} of {len(dealt_out)} sites that train, then what is tested'
  return table


def _f1(scores: dict | None, kind: str, between: str = ' ') -> str:
  if scores is None:
    return '-'
  entry = scores[kind]['typed']
  low, high = entry['ci95']
  return f'{entry["f1"]:.3f}{between}[{low:.2f},{high:.2f}]'


def score_table(summary: dict) -> Table:
  """Typed F1 of every site, strict and lenient, beside that of the adapter for all, where sites
  have their own, and zero-shot."""
  table = Table(title=f'Typed F1, {summary["preset"]}, seed {summary["seed"]} [95 % by note]')
  zero, everyone = (
    (summary.get(key) or {}).get('scores', {}) for key in ('zero_shot', 'global'))
  kinds = ('strict', 'lenient')
  related = has_relations(summary['scores'])
  others = [('global', everyone)] * bool(everyone) + [('zero-shot', zero)]
  names = ['site', *kinds, *(f'{name} {kind}' for name, _ in others for kind in kinds)]
  for name in names + [f'modifiers {kind}' for kind in kinds if related]:
    table.add_column(
      name, justify='left' if name == 'site' else 'right', no_wrap=name == 'site')
  # Six columns fit a terminal only with the intervals below the figures.
  between = '\n' if related or everyone else ' '
  for site, tasks in summary['scores'].items():
    entries = [tasks.get('ner'), *(scores.get(site, {}).get('ner') for _, scores in others)]
    label = f'{site} (external)' if site in summary['external'] else site
    table.add_row(
      label, *(_f1(entry, kind, between) for entry in entries for kind in kinds),
      *(_f1(tasks.get('re', {}).get('modifier'), kind, between) for kind in kinds if related))
  table.add_section()
  inside = [site for site in summary['scores'] if site not in summary['external']]
  table.add_row('mean of the sites', *(
    mean_f1(scores, inside, kind) if scores else '-'
    for scores in (summary['scores'], *(scores for _, scores in others)) for kind in kinds),
    *(mean_modifier_f1(summary['scores'], inside, kind) for kind in kinds if related))
  return table


def mean_f1(scores: dict, sites: Sequence[str], kind: str) -> str:
  """Plain mean over sites of the entities' typed micro F1, as the tables show it."""
  found = [scores[site]['ner'][kind]['typed']['f1'] for site in sites if 'ner' in scores[site]]
  return f'{sum(found) / len(found):.3f}' if found else '-'


def has_relations(scores: dict) -> bool:
  return any('re' in tasks for tasks in scores.values())


def mean_modifier_f1(scores: dict, sites: Sequence[str], kind: str) -> str:
  """Plain mean of the modifiers' F1 over the sites that have any, as the tables show it."""
  found = [
    scores[site]['re']['modifier'][kind]['typed']['f1'] for site in sites if 're' in scores[site]]
  return f'{sum(found) / len(found):.3f}' if found else '-'


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
    lines.append(f'{summary["simulated_seconds"]:,.0f} s in all on the simulated sites')
  lines.append(
    f'exact copies {summary["copy_rate"]:.1%}, unreadable outputs '
    f'{summary["parse_failure_rate"]:.1%}')
  speed = summary['examples_per_second']
  lines.append(
    f'{summary["wall_seconds"]:.0f} s in all, {summary["compile_seconds"]:.0f} s of it compiling'
    + (f', {speed:.2f} training examples/s' if speed else '')
    + f', peak memory {summary["peak_memory_bytes"] / 2**30:.1f} GiB')
  return lines


def api_lines(summary: dict) -> list[str]:
  """What a run behind an endpoint asked and cost, a line each."""
  api = summary['api']
  read, written = ('?' if api[f'{way}_tokens'] is None else f'{api[f"{way}_tokens"]:,}'
                   for way in ('input', 'output'))
  lines = [
    f'{api["answers"]} questions, {api["shots"]} solved examples before each; {api["cached"]} '
    f'answered from the cache, {api["requests"]} requests',
    f'{read} tokens read, {written} written'
    + ('' if api['usd'] is None else f': {api["usd"]:.4f} USD')
    + ('; the endpoint did not count them all' if '?' in (read, written) else ''),
    f'exact copies {summary["copy_rate"]:.1%}, unreadable outputs '
    f'{summary["parse_failure_rate"]:.1%}; {summary["wall_seconds"]:.0f} s']
  if api['failed']:
    lines.append(
      f'warning: {api["failed"]} questions have no answer and score nothing, the first for: '
      f'{api["failure"]}; the same command asks them again')
  return lines


def show(summary: dict, reporter: Reporter) -> None:
  """The end of a run on the terminal."""
  reporter.say(score_table(summary))
  for line in (api_lines if 'api' in summary else cost_lines)(summary):
    reporter.say(line)


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
  table = Table(title='Typed strict F1 by regime [95 % by note]')
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
      _folded(regime), *(_f1(scores[site].get('ner'), 'strict', '\n') for site in sites),
      mean_f1(scores, sites, 'strict'),
      *(_f1(scores[site].get('ner'), 'strict', '\n') for site in external),
      mean_f1(scores, sites, 'lenient'), str(row['local_steps']),
      f'{(row["bytes_up"] + row["bytes_down"]) / 1e6:,.0f}')
  return table


def modifier_table(rows: dict[str, dict], sites: Sequence[str], external: Sequence[str]) -> Table:
  """Regime x site: typed strict F1 of the modifiers, for the regimes that have it."""
  table = Table(title='Typed strict F1 of modifiers, main entity given [95 % by note]')
  table.add_column('regime', no_wrap=True)
  for name in (*sites, 'mean', *(f'{name} (external)' for name in external)):
    table.add_column(name.replace('_', ' '), justify='right')
  for regime, row in rows.items():
    scores = row['scores']
    if has_relations(scores):
      cells = {
        site: _f1(scores[site].get('re', {}).get('modifier'), 'strict', '\n')
        for site in (*sites, *external)}
      table.add_row(
        _folded(regime), *(cells[site] for site in sites),
        mean_modifier_f1(scores, sites, 'strict'), *(cells[site] for site in external))
  return table


def _folded(regime: str) -> str:
  """Names of models can be longer than a column should be."""
  return '\n'.join(textwrap.wrap(regime, 16))

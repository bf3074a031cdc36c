"""report.html: one self-contained page about one or several runs.

It is made from the files of the runs' folders only, so that it can be made again; the same files
give the same bytes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedmedjax.report import audit
from fedmedjax.report import examples as errors
from fedmedjax.report.answers import answer_table
from fedmedjax.report.blocks import (
  Excerpts,
  Plot,
  Section,
  Sentences,
  Settings,
  Table,
)
from fedmedjax.report.claims import CLAIMS, claims_section
from fedmedjax.report.contributions import contribution_section
from fedmedjax.report.corpus import corpus_section
from fedmedjax.report.cost import cost_section, key_figures
from fedmedjax.report.entity_types import type_section
from fedmedjax.report.headline import headline
from fedmedjax.report.measures import asks_text
from fedmedjax.report.page import write_page
from fedmedjax.report.privacy import privacy_section
from fedmedjax.report.runs import Run, method_name, read_answers, read_runs, tested
from fedmedjax.report.scores import cross_section, label, score_section
from fedmedjax.report.text_answers import choose_rows, kinds_table, of_rows, target_table
from fedmedjax.report.training_curves import plot_section, training_section
from fedmedjax.report.type_colours import recorded, type_colours
from fedmedjax.store import files
from fedmedjax.store.words import has_sentence

FILE = 'report.html'
# A sentence is shown with its annotation and the answers of the last runs, at most so many.
_ANSWERS = 6
_HEAD = 2000  # characters of a page in which the tag of `_made_with` is looked for


def write_report(
  path: Path, title: str, runs: Mapping[str, Path], *, examples: int,
  sentences: Sequence[str] = (), tables: Sequence[Table] = (), plots: Sequence[Plot] = (),
  first: str = '', claims: Path | None = None,
) -> None:
  """Writes the page, through a temporary file.

  Args:
    path: the file.
    title: of the page.
    runs: {row of the tables: folder of a finished run}.
    examples: most wrongly answered sentences that are shown of each site; with 0 no text of a note
      is on the page.
    sentences, tables, plots: comparisons of runs, which are not in the files of single runs; shown
      first.
    first: the sentence that the page begins with; '' = of a single run its own, see `headline`.
    claims: folder of the run whose small ablation and audit are shown, if it has them.

  Raises:
    InputError: a file of a run cannot be read.
  """
  rows = read_runs(runs)
  own = [run for run in rows if run.own]
  scores = score_section(rows)
  sections = [
    scores._replace(blocks=[*scores.blocks[:1], answer_table(own), *scores.blocks[1:]]),
    Section('comparisons', 'Comparisons', '', [
      Sentences(sentences), *tables, *plot_section(plots)]),
    claims_section(claims), privacy_section(own), audit.audit_section(claims),
    training_section(rows), contribution_section(own), type_section(rows), cross_section(rows),
    cost_section(rows), corpus_section(own), _example_section(own, examples),
    _settings_section(own)]
  write_page(
    path, title, sections, lead=_lead(own), head=_made_with(examples, claims),
    colours=type_colours(recorded(next((run.sites for run in own if run.sites), {}))),
    first=first or (headline(own[0]) if len(own) == 1 else ''), warnings=_warnings(own),
    figures=key_figures(own[0]) if len(own) == 1 else None,
    made_from=_made_from(claims))


def _made_from(claims: Path | None) -> str:
  """The files of the page, in words; of `claims` those that it has."""
  named = ['config.json', 'summary.json', 'metrics.jsonl', 'sites.json', 'predictions']
  beside = {CLAIMS: CLAIMS.parent.name, Path(audit.FILE): audit.FILE}
  named += [name for path, name in beside.items() if claims and (claims / path).exists()]
  return f'the files of the run: {", ".join(named[:-1])} and {named[-1]}'


def _warnings(runs: Sequence[Run]) -> list[str]:
  """The warnings of all runs; of several, each with the names of the runs that have it."""
  said: dict[str, list[str]] = {}
  for run in runs:
    for warning in run.summary.get('warnings', ()):
      said.setdefault(warning, []).append(run.name)
  return [
    warning if len(runs) == 1 else
    f'{"all runs" if len(names) == len(runs) else ", ".join(names)}: {warning}'
    for warning, names in said.items()]


def _made_with(examples: int, claims: Path | None) -> str:
  """The tag in a page's head that says what it was made of, beside the run."""
  methods = ' methods' if claims and (claims / CLAIMS).exists() else ''
  audited = ''
  if claims and (claims / audit.FILE).exists():
    audited = f' audit {files.file_checksums(claims / audit.FILE)[audit.FILE]}'
  return f'<meta name="excerpts" content="{examples}{methods}{audited}">'


def freshen(workdir: Path, examples: int) -> None:
  """Writes a finished run's report if it is missing, or was made with another number of excerpts,
  or before the small ablation or the audit that the folder has.
  """
  path, name = workdir / FILE, workdir.resolve().name
  if path.exists():
    with path.open(encoding='utf-8') as file:
      if _made_with(examples, workdir) in file.read(_HEAD):
        return
  method = method_name(files.read_json(workdir / 'summary.json'))
  write_report(path, name, {method: workdir}, examples=examples, claims=workdir)


def _lead(runs: Sequence[Run]) -> str:
  """One line about the runs: numbers of sites and rounds, and seeds."""
  inside, outside = tested(runs)
  seeds = sorted({run.summary['seed'] for run in runs})
  rounds = sorted({run.summary['rounds'] for run in runs} - {0})
  parts = [
    f'{len(inside)} in-domain site{"s" * (len(inside) != 1)}',
    f'{len(outside)} external' if outside else '',
    ' or '.join(map(str, rounds)) + f' round{"s" * (rounds != [1])}' if rounds else '',
    f'seed{"s" * (len(seeds) > 1)} {", ".join(map(str, seeds))}']
  return ' \N{MIDDLE DOT} '.join(filter(None, parts))


def _example_section(runs: Sequence[Run], count: int) -> Section:
  shown, outside = runs[-_ANSWERS:], tested(runs)[1]
  answers = {site: {run.name: records for run in shown if (records := read_answers(run, site))}
             for site in sum(tested(shown), [])}
  if any(asks_text(run.summary) for run in shown):
    return _row_section(shown, answers, outside, count)
  totals = {site: {name: errors.totals(records) for name, records in by_run.items()}
            for site, by_run in answers.items()}
  if len(shown) == 1:
    rows = [(label(site, outside), total)
            for site, by_run in totals.items() for total in by_run.values()]
    first, where = 'site', 'all test sentences'
  else:
    inside, _ = tested(shown)
    rows = [(run.name, sum((totals[site].get(run.name, errors.Counter()) for site in inside),
                           errors.Counter())) for run in shown]
    first, where = 'regime', 'the test sentences of the in-domain sites'
  table = Table(
    'Errors by kind', f'Over {where}. Missed: annotated, and nothing found there. Invented: found, '
    'and nothing annotated there.', (first, *errors.ERRORS),
    [[name, *(f'{total[kind]:,}' for kind in errors.ERRORS)] for name, total in rows])
  excerpts = [
    Excerpts(site, errors.choose(by_run, count, shown[-1].summary['seed']), folded=index > 0)
    for index, (site, by_run) in enumerate(answers.items())]
  told = [record for by_run in answers.values() for records in by_run.values()
          for record in records]
  kept, related = not told or any(map(has_sentence, told)), any('main' in one for one in told)
  lead = 'Where answers differ from the annotation.' + (
    ' Sentences are chosen by kind of error, not by how often it occurs.'
    + ' "main" is the given main entity.' * related if count and kept else
    ' No text of a note is shown: ' + (
      'the predictions were kept without (config.store.text).' if count else
      'config.report.examples says when.'))
  return Section('errors', 'Errors', lead, [table, *excerpts])


def _row_section(
  shown: Sequence[Run], answers: Mapping[str, dict[str, list[dict]]], outside: Sequence[str],
  count: int,
) -> Section:
  """The section about the answers of an own task; `answers` are {site: {run: records}}."""
  excerpts = [
    Excerpts(site, choose_rows(by_run, count, shown[-1].summary['seed']), folded=index > 0,
             unit='row') for index, (site, by_run) in enumerate(answers.items())]
  if len(shown) == 1:
    first, held = 'site', {
      label(site, outside): of_rows(records)
      for site, by_run in answers.items() for records in by_run.values()}
  else:
    first, held = 'regime', {run.name: {
      (site, name): record for site, by_run in answers.items() if site not in outside
      for name, record in of_rows(by_run.get(run.name, ())).items()} for run in shown}
  quoted = any(one.entries for one in excerpts)
  lead = 'How rows were answered' + (
    ', and some whose answer is not the target.' if quoted else '.') + (
    '' if quoted or not answers else ' No text of a row is shown' + (
      '.' if count else ': config.report.examples says when.'))
  return Section('errors', 'Answers', lead, [
    kinds_table(first, held), *([target_table(held)] if quoted else []), *excerpts])


def _settings_section(runs: Sequence[Run]) -> Section:
  def said(value):
    return ', '.join(map(str, value)) if isinstance(value, list) else str(value)

  keys = sorted({key for run in runs for key in run.config})
  missing = '\N{EN DASH}'
  values = {key: [said(run.config.get(key, missing)) for run in runs] for key in keys}
  alike = [(key, of_runs[0]) for key, of_runs in values.items() if len(set(of_runs)) == 1]
  unlike = [[key, *of_runs] for key, of_runs in values.items() if len(set(of_runs)) > 1]
  versions = next((v for run in runs if (v := run.summary.get('versions'))), {})
  return Section(
    'settings', 'Configuration and versions',
    'Every key is explained in fedmedjax/experiment: defaults.py, eval_defaults.py, '
    'federation_defaults.py and privacy_defaults.py.', [
      Table('What sets the regimes apart', '', ('key', *(run.name for run in runs)), unlike,
            words=True),
      Settings(f'{"Keys that all share" if len(runs) > 1 else "All keys"} ({len(alike)})', alike),
      Settings('Versions', list(versions.items()))])

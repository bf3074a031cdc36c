"""Tables of docs/results.md, made of the study's rows.

The page holds a place for each, between `<!-- table: NAME -->` and `<!-- /table: NAME -->`. What a
table lacks it says; units that have not run yet are in none. Figures are means over seeds, with the
95 % intervals of `eval/intervals.py`, over sources and seeds; differences pair runs of one seed.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fedmedjax.compare import ablation, privacy_table, study_claims
from fedmedjax.compare.rows import DEPTH
from fedmedjax.compare.study import Paths, done, read_rows
from fedmedjax.compare.study_figures import (
  Row,
  Rows,
  chosen,
  commits,
  difference,
  figure,
  markdown,
  mean,
  origin,
  saved,
  signed,
  unread_note,
  usual_commit,
)
from fedmedjax.compare.study_units import (
  ADDED,
  BLOCKS,
  EXTERNAL,
  JUDGES,
  POOL,
  STUDIES,
  V_OF,
  units,
)
from fedmedjax.types import InputError


def current_rows(results: Path) -> dict[str, list[Row]]:
  """{study: rows of units as they are today}, of docs/results; others stay in the files only."""
  paths = Paths(results, results, Path('runs'))
  found = {}
  for study in STUDIES:
    rows = read_rows(paths.rows(study))
    kept = [done(unit, rows) for unit in units(study, paths.runs)] if rows else []
    found[study] = [row for row in kept if row]
  return found


def filled(page: str, results: Path) -> str:
  """The page with all its tables made anew.

  Raises:
    InputError: a table has no place in the page, or the page has a place for no table.
  """
  rows = current_rows(results)
  places = re.findall(r'<!-- table: (\w+) -->', page)
  if sorted(places) != sorted(TABLES):
    raise InputError(
      f'docs/results.md: places of tables {places}; once each of {", ".join(TABLES)} is allowed')
  for name, build in TABLES.items():
    start, end = f'<!-- table: {name} -->\n', f'<!-- /table: {name} -->'
    head, _, rest = page.partition(start)
    _, mark, tail = rest.partition(end)
    if not mark:
      raise InputError(f'docs/results.md: {end} is missing')
    page = f'{head}{start}{build(rows)}{end}{tail}'
  return page


# The tables.

# Rows of R1 and R3: name in the table, regime, whether of the best single site.
_REGIMES = (
  ('zero_shot', 'zero_shot', False),
  ('single_site, all adapters, counts added', 'single_site', False),
  ('best single site, chosen on V', 'single_site', True),
  ('centralised, equal steps', 'centralised', False), ('centralised, equal depth', DEPTH, False),
  ('fed_medlora', 'fed_medlora', False))


def _pool_table(rows: Rows, cohorts: Sequence[str], study: str) -> str:
  """R1's regimes on some cohorts, and fed_medlora's differences to the others."""
  own = rows['r1']
  text = origin(study, own, STUDIES['r1'])
  if not own:
    return text
  usual, lines, compared = usual_commit(own), [], []
  federated = chosen(own, regime='fed_medlora')
  for name, regime, best in _REGIMES:
    held = chosen(own, regime=regime)
    if not held:
      continue
    several = [figure(mean(held, cohorts, best=best))] if len(cohorts) > 1 else []
    lines.append([
      name, str(len(held)), *(figure(mean(held, [cohort], best=best)) for cohort in cohorts),
      *several, figure(mean(held, cohorts, match='lenient', best=best)),
      figure(mean(held, cohorts, 'teacher_forced', best=best)),
      f'{np.mean([row["local_steps"] for row in held.values()]):.0f}',
      f'{np.mean([row["bytes_up"] + row["bytes_down"] for row in held.values()]) / 1e6:.0f}',
      commits(held.values(), usual)])
    if regime != 'fed_medlora' and federated:
      compared.append([
        f'fed_medlora − {name}',
        *(signed(difference(federated, held, cohorts, kind, match, best=best)) for kind, match in (
          ('decoding', 'strict'), ('decoding', 'lenient'), ('teacher_forced', 'strict')))])
  names = [*cohorts, 'mean'] if len(cohorts) > 1 else [*cohorts]
  text += '\n' + markdown(
    ['regime', 'seeds', *names, 'lenient', 'teacher-forced', 'steps', 'MB sent', 'commit'], lines)
  return text + ('\n' + markdown(
    ['difference', 'strict', 'lenient', 'teacher-forced'], compared) if compared else ''
  ) + unread_note(own)


def r1(rows: Rows) -> str:
  """Regimes on the two corpora that were dealt out."""
  return _pool_table(rows, POOL, 'r1')


def r3(rows: Rows) -> str:
  """The same adapters on the cohort that nobody trained on."""
  return _pool_table(rows, [EXTERNAL], 'r3')


def r2(rows: Rows) -> str:
  """Methods where the largest site mislabels, by whose notes V is of."""
  own = rows['r2']
  text = origin('r2', own, STUDIES['r2'])
  if not own:
    return text
  usual, lines = usual_commit(own), []
  plain = chosen(own, regime='fed_medlora')
  for name, held in (('fed_medlora', 'none'), *((j, v) for v in V_OF for j in JUDGES)):
    found = chosen(own, regime=name, v=held)
    if found:
      lines.append([
        name, {'none': '-', 'sites': "the sites' own", 'clean': "the server's"}[held],
        str(len(found)), figure(mean(found, POOL)), figure(mean(found, POOL, match='lenient')),
        figure(mean(found, POOL, 'teacher_forced')),
        '-' if held == 'none' else signed(difference(found, plain, POOL)),
        '-' if held == 'none' else signed(difference(found, plain, POOL, 'teacher_forced')),
        commits(found.values(), usual)])
  return text + '\n' + markdown(
    ['method', 'V', 'seeds', 'strict', 'lenient', 'teacher-forced', '− fed_medlora',
     'the same, teacher-forced', 'commit'], lines)


def r4(rows: Rows) -> str:
  """A new site of n sentences, on the federation's adapter and from the base."""
  own = rows['r4']
  text = origin('r4', own, STUDIES['r4'])
  if not own:
    return text
  arms = {'base': 'from the base', 'federated': "on the federation's adapter"}
  held = {(arm, n): chosen(own, arm=arm, n=n) for arm in arms for n in ADDED}
  lines = [[f'{words}, {match}', *(figure(mean(held[arm, n], [EXTERNAL], match=match))
                                   for n in ADDED)]
           for match in ('strict', 'lenient') for arm, words in arms.items()]
  lines += [[f'difference, {words}', *(
    signed(difference(held['federated', n], held['base', n], [EXTERNAL], kind)) for n in ADDED)]
    for kind, words in (('decoding', 'strict'), ('teacher_forced', 'teacher-forced'))]
  lines += [['seeds', *(str(len(held['federated', n])) for n in ADDED)],
            ['commit', *(commits([*held['base', n].values(), *held['federated', n].values()],
                                 usual_commit(own)) for n in ADDED)]]
  return text + '\n' + markdown(['arm', *(f'n = {n}' for n in ADDED)], lines) + unread_note(own)


def r5(rows: Rows) -> str:
  """Bytes of larger models' adapters, of a site and round."""
  own = rows['r5']
  text = origin('r5', own, STUDIES['r5'])
  return text + ('\n' + markdown(
    ['model', 'adapted projections', 'parameters', 'of the adapter', 'MB down and up',
     'MB of the model in bfloat16, both ways', 'less', 'commit'],
    [[row['unit']['model'], f'{row["targets"]}, rank {row["rank"]}', f'{row["base_parameters"]:,}',
      f'{row["adapter_parameters"]:,}', f'{(row["bytes_down"] + row["bytes_up"]) / 1e6:.1f}',
      f'{2 * row["bytes_model"] / 1e6:,.0f}', f'{saved(row):.2%}',
      commits([row], usual_commit(own))] for row in own]) if own else '')


def r6(rows: Rows) -> str:
  """The word tagger's methods in all settings, and with other sizes."""
  own = rows['r6']
  text = origin('r6', own, STUDIES['r6'])
  for row in own:
    text += '\n' + ablation.tables(row['runs'], *BLOCKS[row['unit']['block']])
  return text


# FedNLP, npj Digital Medicine 7, 127 (2024), doi 10.1038/s41746-024-01126-4: federated models, and
# GPT-4 with examples in its prompt; strict and lenient F1 on NCBI disease.
FEDNLP = (('BlueBERT', 0.824, 0.899), ('GPT-2', 0.784, 0.840), ('GPT-4, prompted', 0.722, 0.834))


def ncbi(rows: Rows) -> str:
  """Ours on NCBI disease beside a federated study of others."""
  own = rows['ncbi']
  text = origin('ncbi', own, STUDIES['ncbi'])
  lines = [[name, 'FedNLP, as published', f'{strict:.3f}', f'{lenient:.3f}', '-', '-']
           for name, strict, lenient in FEDNLP]
  if held := chosen(own, regime='fed_medlora'):
    form = ', '.join(dict.fromkeys(row['matmul'] for row in held.values()))
    lines.insert(0, [
      f'SmolLM2-135M, LoRA, products in {form}', 'ours, fed_medlora',
      figure(mean(held, [EXTERNAL])), figure(mean(held, [EXTERNAL], match='lenient')),
      figure(mean(held, [EXTERNAL], 'teacher_forced')), commits(held.values())])
  return text + '\n' + markdown(
    ['model', 'of', 'strict', 'lenient', 'teacher-forced', 'commit'], lines)


def privacy(rows: Rows) -> str:
  """F1 and what a membership attack finds, by budget."""
  own = [row for row in rows['privacy'] if 'audited' not in row]
  text = origin('privacy', rows['privacy'], STUDIES['privacy'])
  return text + ('\n' + privacy_table.table(own, POOL[1:]) if own else '')


def privacy_proof(rows: Rows) -> str:
  """Audited runs: bounds and claims."""
  own = [row for row in rows['privacy'] if 'audited' in row]
  return privacy_table.audited(own) if own else origin('privacy', own, STUDIES['privacy'])


def claims(rows: Rows) -> str:
  """The paper's claims beside what the study shows."""
  return markdown(study_claims.HEAD, study_claims.lines(rows))


# {name of the place in docs/results.md: its table}
TABLES: dict[str, Callable[[Rows], str]] = {
  'claims': claims, 'r1': r1, 'r2': r2, 'r3': r3, 'r4': r4, 'r5': r5, 'r6': r6,
  'ncbi': ncbi, 'privacy_proof': privacy_proof, 'privacy': privacy}

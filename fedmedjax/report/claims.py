"""The part of a run's page that sets methods beside each other, where that was asked for.

One run of one seed supports no claim about methods; see `compare/first_claims.py`.
"""

from pathlib import Path

from fedmedjax.report.blocks import Cell, Section, Sentences, Table
from fedmedjax.store import files

# In a run's folder: {'lead': a paragraph, 'sentences': [...], 'table': the fields of a `Table`}.
CLAIMS = Path('ablation') / 'claims.json'


def write_claims(workdir: Path, lead: str, sentences: list[str], table: Table) -> None:
  """Writes what `claims_section` reads."""
  files.write_json(workdir / CLAIMS, files.plain({
    'lead': lead, 'sentences': sentences, 'table': table._asdict()}))


def claims_section(workdir: Path | None) -> Section:
  """The section of a run's page; without blocks where no ablation was asked for.

  Raises:
    InputError: the file cannot be read.
  """
  held = files.read_json(workdir / CLAIMS) if workdir and (workdir / CLAIMS).exists() else {}
  blocks = []
  if held:
    rows = [[cell if isinstance(cell, str) else Cell(*cell) for cell in row]
            for row in held['table']['rows']]
    blocks = [Sentences(held['sentences']), Table(**held['table'] | {'rows': rows})]
  return Section('methods', 'Methods beside each other', held.get('lead', ''), blocks,
                 folded=False)

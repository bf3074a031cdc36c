"""A self-contained HTML page out of sections.

It has no scripts and loads nothing over the network; its own Content-Security-Policy enforces that.
Notes and names are other people's text: jinja2 escapes them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from fedmedjax.report.blocks import Excerpts, Figures, Folded, Section, Settings, Table
from fedmedjax.report.type_colours import TypeColour
from fedmedjax.store import files

# Names of no more characters are not broken into lines, so that the first column of a table has
# 'synthetic_dictation' in one piece on a telephone.
_WHOLE = 20


def write_page(
  path: Path, title: str, sections: Sequence[Section], *, first: str, lead: str, made_from: str,
  warnings: Sequence[str] = (), figures: Figures | None = None, head: str = '',
  colours: Mapping[str, TypeColour] | None = None,
) -> None:
  """Writes the page, through a temporary file.

  Args:
    path: the file.
    title: of the page.
    sections: those without blocks, and blocks without content, are left out.
    first: the sentence that the page begins with; '' = none.
    lead: one line below it.
    made_from: the files that the page is made from, in words.
    warnings: sentences in a box of their own.
    figures: large numbers below the lead.
    head: a tag in the page's head.
    colours: of entity types, by name.
  """
  files.write_text(path, _environment().get_template('report.html').render(
    title=title, head=head, lead=lead, colours=colours or {}, first=first, warnings=warnings,
    figures=figures, made_from=made_from,
    sections=[filled for section in sections if (filled := _filled(section)).blocks]))


def _environment() -> jinja2.Environment:
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('fedmedjax.report'), autoescape=True, trim_blocks=True,
    lstrip_blocks=True, undefined=jinja2.StrictUndefined)
  environment.filters['breakable'] = breakable
  return environment


def breakable(text: str) -> Markup:
  """Text whose names may be broken into lines: after commas, and of names that are long even so
  after underscores, dots, colons, slashes and equals signs. A number is no name.
  """
  def broken(part: str) -> str:
    return part if len(part) <= _WHOLE else re.sub(
      r'(?<=[_:/=])(?=\w)|(?<=[.])(?=[^\W\d])', '<wbr>', part)

  return Markup(' '.join(
    '<wbr>'.join(map(broken, re.split(r'(?<=[,])(?=[^\W\d])', word)))
    for word in str(escape(text)).split(' ')))


def _filled(section: Section) -> Section:
  """The section without its empty blocks, and without columns of tables that say nothing.

  A block is empty when its rows (of a table), its entries, or else its first field are.
  """
  return section._replace(blocks=_told(section.blocks))


def _told(blocks: Sequence[Any]) -> list[Any]:
  told = [
    block._replace(blocks=_told(block.blocks)) if isinstance(block, Folded) else
    block.told() if isinstance(block, Table) else block for block in blocks]
  return [block for block in told if _has_something(block)]


def _has_something(block) -> bool:
  return bool(block.rows if isinstance(block, Table) else
              block.entries if isinstance(block, Excerpts | Settings) else block[0])

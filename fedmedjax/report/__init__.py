"""report.html, the page about a run or several; `html.write_report` has its contract."""

from fedmedjax.report.blocks import Cell, Plot, Table
from fedmedjax.report.html import FILE, freshen, write_report
from fedmedjax.report.runs import SITES

__all__ = ['FILE', 'SITES', 'Cell', 'Plot', 'Table', 'freshen', 'write_report']

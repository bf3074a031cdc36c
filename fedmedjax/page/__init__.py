"""report.html, the page about a run or several; `write.py` has its contract."""

from fedmedjax.page.blocks import Cell, Plot, Table
from fedmedjax.page.files import SITES
from fedmedjax.page.write import FILE, freshen, write_report

__all__ = ['FILE', 'SITES', 'Cell', 'Plot', 'Table', 'freshen', 'write_report']

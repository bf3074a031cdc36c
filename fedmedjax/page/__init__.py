"""report.html, the page about a run or several; `write.py` has its contract."""

from fedmedjax.page.blocks import Plot, Table
from fedmedjax.page.files import SITES
from fedmedjax.page.write import FILE, freshen, write_report

__all__ = ['FILE', 'SITES', 'Plot', 'Table', 'freshen', 'write_report']

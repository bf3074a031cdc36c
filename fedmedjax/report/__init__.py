"""report.html, the page about one or several runs; see `html.py`."""

from fedmedjax.report.blocks import Cell, Plot, Table
from fedmedjax.report.claims import write_claims
from fedmedjax.report.html import FILE, freshen, write_report
from fedmedjax.report.runs import SITES

__all__ = ['FILE', 'SITES', 'Cell', 'Plot', 'Table', 'freshen', 'write_claims', 'write_report']

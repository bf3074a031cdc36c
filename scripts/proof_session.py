"""A plugin of pytest for scripts/proof.sh: remembers what passed, and stops when time is up.

PROOF_PASSED names a file of tests that need not run again; what passes is added to it.
PROOF_DEADLINE is a time in seconds since 1970 after which no test begins; those that were left
out are named at the end. PROOF_ORDER is any text: files of tests take turns in an order that
depends on it, so that under a deadline not always the same ones are left out.
"""

import hashlib
import os
import time
from pathlib import Path

import pytest

PASSED = Path(os.environ['PROOF_PASSED'])
DEADLINE = float(os.environ.get('PROOF_DEADLINE', 'inf'))
ORDER = os.environ.get('PROOF_ORDER', '')
TOO_LATE = 'no time was left'


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
  """Leaves out what has passed before; whole files in an order of PROOF_ORDER."""
  known = set(PASSED.read_text().splitlines()) if PASSED.exists() else set()
  done = [item for item in items if item.nodeid in known]
  config.hook.pytest_deselected(items=done)
  items[:] = sorted(
    (item for item in items if item.nodeid not in known),
    key=lambda item: hashlib.sha256(f'{ORDER} {item.path.name}'.encode()).digest())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
  if time.time() > DEADLINE:
    pytest.skip(TOO_LATE)


def pytest_runtest_logreport(report):
  # Of two processes the one that shows the results writes them down.
  if report.when == 'call' and report.passed and not os.environ.get('PYTEST_XDIST_WORKER'):
    with PASSED.open('a') as file:
      file.write(f'{report.nodeid}\n')


def pytest_terminal_summary(terminalreporter):
  late = [report.nodeid for report in terminalreporter.stats.get('skipped', ())
          if TOO_LATE in str(report.longrepr)]
  if late:
    terminalreporter.section(f'{len(late)} tests that did not run, as {TOO_LATE}')
    terminalreporter.write_line('\n'.join(sorted(late)))

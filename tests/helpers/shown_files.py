"""Files and commands as the pages show them, for tests that do what a page says."""

import re
import shlex


def shown_files(page: str) -> dict[str, str]:
  """{name: content} of the blocks that follow a file's name: `NAME`: and a fenced block."""
  return dict(re.findall(
    r'`([\w/]+\.(?:csv|toml|json))`:\n\n```\w+\n(.*?)^```$', page, re.M | re.S))


def shown_command(page: str, part: str) -> list[str]:
  """The words of the page's command that has this part, without `python -m`."""
  lines = page.replace('\\\n', ' ').splitlines()
  (line,) = (line for line in lines if line.startswith('python -m ') and part in line)
  return shlex.split(line)[2:]

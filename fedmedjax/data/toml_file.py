"""The text of a TOML file of a user's own."""

import re
import tomllib
from typing import Any

from fedmedjax.types import InputError


def parse_toml(text: str, source: Any) -> dict[str, Any]:
  """The tables of a text; `source` is the file, for errors.

  Raises:
    InputError: it is no TOML; one line with file and line.
  """
  try:
    return tomllib.loads(text)
  except (ValueError, RecursionError) as error:  # not all of them are TOMLDecodeErrors
    line = re.search(r'at line (\d+)', str(error))
    line = line[1] if line else text.count('\n') + 1
    raise InputError(f'{source}:{line}: no TOML: {error}') from None

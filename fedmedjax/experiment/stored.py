"""What of the notes a run leaves on disk: config.report.examples and config.store.text."""

from collections.abc import Collection
from typing import Any

from ml_collections import ConfigDict

from fedmedjax.data.formats.corpora import CORPORA
from fedmedjax.data.synthetic.cohorts import COHORTS
from fedmedjax.types import InputError

# Sentences of each site that a report quotes of notes that anybody may read.
_QUOTED = 6


def check_stored(values: dict[str, Any]) -> None:
  """Raises InputError for what needs the words of notes that config.store.text=False leaves out.

  `values` are the flat configuration, each allowed on its own.
  """
  if values['store.text']:
    return
  if values['report.examples'] > 0:
    raise InputError(
      f"config.report.examples={values['report.examples']}: with config.store.text=False no text "
      'is kept that could be quoted; use 0 or -1')


def quoted_sentences(config: ConfigDict, given: Collection[str] = ()) -> int:
  """How many sentences of each site a report quotes, as config.report.examples says.

  -1 is worked out here: nothing is quoted of anybody's own notes, nor where no text is kept.

  Args:
    config: validated.
    given: names of sites whose notes were given in Python.
  """
  if not config.store.text:
    return 0
  if config.report.examples >= 0:
    return config.report.examples
  used = {*config.data.sites, *config.data.external, config.data.server_validation} - {''}
  return _QUOTED if used <= {*COHORTS, *CORPORA} - set(given) else 0

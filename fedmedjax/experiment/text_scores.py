"""What the task 'text' is scored by: config.eval.metrics and config.eval.metric."""

import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fedmedjax.data.site import SiteData
from fedmedjax.data.text_task import TEXT
from fedmedjax.eval.own_metric import OwnMetric
from fedmedjax.eval.text_metrics import METRICS, USUAL, TextMetrics, tried
from fedmedjax.experiment.checks import Check
from fedmedjax.experiment.own_parts import METRIC, OwnPart, is_own, where_it_failed
from fedmedjax.runtime.processes import Processes
from fedmedjax.types import InputError

CHECKS = {
  'eval.metrics': Check(
    lambda v: isinstance(v, tuple) and all(name in METRICS for name in v) and len(set(v)) == len(v),
    f'a tuple of different ones of {", ".join(METRICS)}'),
  METRIC: Check(lambda v: v == '' or is_own(v), "FILE.py:FUNCTION, or '',")}


def check_metrics(values: Mapping[str, Any]) -> None:
  """Raises InputError for metrics that judge nothing here, or cannot be computed.

  `values` are the flat configuration, each allowed on its own.
  """
  tasks, names, own = values['data.tasks'], values['eval.metrics'], values[METRIC]
  if tasks != (TEXT,):
    for key, value, usual in (('eval.metrics', names, USUAL.names), (METRIC, own, '')):
      if value != usual:
        raise InputError(
          f'config.{key}={value!r}: config.data.tasks={tasks!r} writes no texts that it could '
          f"judge; use {usual!r}, or config.data.tasks=('{TEXT}',)")
    return
  if 'rouge_l' in names and importlib.util.find_spec('rouge_score') is None:
    raise InputError(
      f"config.eval.metrics={names!r}: rouge_l needs a package; pip install 'fedmedjax[rouge]'")


def text_metrics(
  values: Mapping[str, Any], own: Mapping[str, OwnPart], sites: Sequence[SiteData]
) -> TextMetrics:
  """The metrics of a configuration, tried on the rows that these sites are tested on.

  Args:
    values: flat and validated.
    own: the user's own parts, by key.
    sites: all that will be scored.

  Raises:
    InputError: a metric of the user's own that fails on them, or gives what cannot be used.
  """
  part = own.get(METRIC)
  # Only here a metric that was given in Python is known for sure.
  if values['data.tasks'] == (TEXT,) and not values['eval.metrics'] and not part:
    raise InputError(
      f"config.eval.metrics=(): with config.eval.metric='' nothing is scored; name some of "
      f'{", ".join(METRICS)}')
  metric = part and OwnMetric(f'config.{METRIC}={part.name!r}', partial(_called, part))
  return tried(TextMetrics(tuple(values['eval.metrics']), metric), sites)


def known_to_all(processes: Processes, text: TextMetrics) -> TextMetrics:
  """The metrics, with what an own one gives where any process has tried it."""
  if text.own is None or processes.count == 1:
    return text
  return text._replace(own=text.own._replace(gives=processes.merged(
    'metrics', dict(text.own.gives or {})) or None))


def _called(part: OwnPart, answers: list[str], targets: list[str]) -> Any:
  """What a user's metric gives; raises InputError, which says in one line where it failed."""
  try:
    return part.builder(answers, targets)
  except Exception as error:  # a user's program: it may raise anything
    raise InputError(where_it_failed(error, _file(part))) from None


def _file(part: OwnPart) -> str:
  """The file of a part, also of one that was given in Python; else its name."""
  if not part.name.startswith('python:'):
    return part.name
  function = inspect.unwrap(getattr(part.builder, 'func', part.builder))
  if not hasattr(function, '__code__'):
    function = type(function).__call__
  code = getattr(function, '__code__', None)
  return code.co_filename if code else part.name

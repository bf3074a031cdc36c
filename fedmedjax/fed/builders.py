"""How a part of a method is built from the hyper-parameters of a run."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax

from fedmedjax.types import InputError


def is_off(value: Any) -> bool:
  """Whether a hyper-parameter is the number 0, which switches its part off.

  One that is traced, f32[] of each of several runs, never is: runs with 0 are another program.
  """
  return not isinstance(value, jax.Array) and not value


def build(builder: Callable[..., Any], values: Mapping[str, Any], name: str = '') -> Any:
  """Calls `builder` with those hyper-parameters that its signature names, and no others.

  A builder that ends with `**values` is given all of them.

  Args:
    builder: of an aggregator, a rule, a sharing or a server optimiser; in this package or a user's.
    values: hyper-parameters by name, {'size_power': 1.0, 'rank': 16, ...}.
    name: of the builder in the error; '' = its own.

  Raises:
    InputError: the signature names a parameter without default that is no hyper-parameter.
  """
  parameters = inspect.signature(builder).parameters.values()
  if any(one.kind is one.VAR_KEYWORD for one in parameters):
    return builder(**values)
  wanted = [one for one in parameters if one.kind is not one.VAR_POSITIONAL]
  for one in wanted:
    if one.name not in values and one.default is one.empty:
      raise InputError(
        f'{name or builder.__name__}: its parameter {one.name!r} is no hyper-parameter of a run '
        f'and has no default; allowed are {", ".join(sorted(values))}')
  return builder(**{one.name: values[one.name] for one in wanted if one.name in values})

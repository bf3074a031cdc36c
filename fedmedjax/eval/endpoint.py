"""The address, key and model of an OpenAI-compatible endpoint, from the environment.

The address and the key stay inside `Endpoint` and the openai library: they are in no message, log,
cache or file.
"""

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from fedmedjax.types import InputError

VARIABLES = ('OPENAI_BASE_URL', 'OPENAI_API_KEY', 'OPENAI_MODEL')


class Endpoint(NamedTuple):
  """A model behind an address. Its repr names the model only: address and key are secret."""

  model: str
  url: str
  key: str

  def __repr__(self) -> str:
    return f'Endpoint({self.model!r})'


def endpoint_from(environment: Mapping[str, str], model: str = '') -> Endpoint:
  """The endpoint that the environment names.

  Args:
    environment: os.environ.
    model: the name in a regime `api:MODEL`; '' takes the one in OPENAI_MODEL.

  Raises:
    InputError: a variable is missing or malformed, or the package `openai` is.
  """
  url, key, named = (environment.get(name, '').strip() for name in VARIABLES)
  model = model or named
  for name, value in zip(VARIABLES, (url, key, model), strict=True):
    if not value:
      raise InputError(
        f'the environment variable {name} is missing or empty: API regimes take the address, the '
        f'key and, unless named as api:MODEL, the model from {", ".join(VARIABLES)}')
  if not key.isascii() or not key.isprintable():
    raise InputError(
      'the environment variable OPENAI_API_KEY: printable ASCII characters are expected (its '
      'value is not shown)')
  try:
    import openai
  except ImportError:
    raise InputError(f"regime 'api:{model}' needs the package openai; pip install openai") from None
  try:
    parts = urlsplit(url)
    sound = parts.scheme in ('http', 'https') and parts.hostname and url.isprintable()
    openai.OpenAI(base_url=url, api_key=key).close()
  except Exception:  # whatever it is, its text may hold the address or the key
    sound = False
  if not sound:
    raise InputError(
      'the environment variable OPENAI_BASE_URL: an address such as https://HOST/v1 is expected '
      '(its value is not shown)')
  return Endpoint(model, url, key)

"""The types and words of a study, from its configuration."""

from typing import Any

from fedmedjax.data.schema import read_schema
from fedmedjax.data.tasks import STYLES, TASKS
from fedmedjax.data.text_task import TEXT
from fedmedjax.data.wording import with_wording
from fedmedjax.types import InputError, Schema


def study_schema(schema: str, prompt: str) -> Schema:
  """The schema of config.data.schema with the prompts of config.data.prompt."""
  return with_wording(read_schema(schema), prompt, tuple(TASKS), tuple(STYLES))


def checked_schema(values: dict[str, Any]) -> Schema:
  """As `study_schema`, of a flat configuration.

  Raises:
    InputError: one of the files is not allowed, or nothing would read the prompts.
  """
  schema, prompt = study_schema(values['data.schema'], values['data.prompt']), values['data.prompt']
  if prompt and values['fed.learner'] != 'lora':
    raise InputError(f"config.data.prompt={prompt!r}: config.fed.learner={values['fed.learner']!r} "
                     "reads no prompt; use ''")
  if values['data.schema'] and values['data.tasks'] == (TEXT,):
    raise InputError(f"config.data.schema={values['data.schema']!r}: rows of config.data.tasks="
                     "('text',) have no types; use ''")
  if schema.wording and not any(
      one.style in ('', values['data.style']) and one.task in values['data.tasks']
      for one in schema.wording):
    said = ', '.join('.'.join(filter(None, one[:2])) for one in schema.wording)
    raise InputError(
      f"config.data.prompt={prompt!r}: has words for {said}, and config.data.style="
      f"{values['data.style']!r} with config.data.tasks={values['data.tasks']!r} has none of it")
  return schema

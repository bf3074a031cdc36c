"""Training with a unit of privacy below the site: config.privacy to steps and their gradient."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax

from fedmedjax.data.pieces import ONE_SOURCE
from fedmedjax.data.private_steps import Units
from fedmedjax.data.schedule import Schedule
from fedmedjax.data.unit_names import UNITS, unit_name
from fedmedjax.fed.privacy import Private
from fedmedjax.fed.private_gradient import private_gradient
from fedmedjax.types import InputError, SiteCorpus


def sampled_units(values: Mapping[str, Any]) -> Units | None:
  """The units that steps draw; None where there is no privacy, or that of whole sites.

  Args:
    values: the flat configuration.

  Raises:
    InputError: a key that does not go together with such units.
  """
  kind = values['privacy.unit']
  if kind not in UNITS or not values['fed.train']:
    return None
  if values['fed.micro_batch']:
    raise InputError(
      f'config.fed.micro_batch={values["fed.micro_batch"]}: with config.privacy.unit={kind!r} '
      'gradients are made unit by unit; use 0, and config.privacy.microbatch')
  # A language model on a CPU gains nothing by several, and would compute a chunk's empty places.
  alone = values['fed.learner'] == 'lora' and jax.default_backend() == 'cpu'
  return Units(
    kind, values['privacy.unit_examples'],
    values['privacy.microbatch'] or (1 if alone else 8))


def reading_units(values: Mapping[str, Any]) -> dict[str, Any]:
  """What `site.read_site` is told, so that a site's examples know their unit, and V bounds it."""
  units = sampled_units(values)
  return {
    'unit_of': partial(unit_name, units.kind),
    'unit_answers': values['privacy.loss_answers'] if values['privacy.loss_clip'] else 0} if (
      units) else {}


def check_patients(values: Mapping[str, Any], sites: Sequence[SiteCorpus]) -> None:
  """Raises InputError where all notes of a site are one patient's: reading makes sources of them.

  Args:
    values: the flat configuration.
    sites: that train, as read.
  """
  for site in sites if values['privacy.unit'] == 'patient' and values['fed.train'] else ():
    if site.report.get(ONE_SOURCE, 0) >= len(site.train) > 0 and all(
        note.source == note.name for note in site.train):
      raise InputError(
        f"config.privacy.unit='patient': the {len(site.train)} training notes of site "
        f'{site.name!r} are all of one source, so that no other patient is there to hide it '
        "among; use 'site', or 'note'")


def planning_units(values: Mapping[str, Any], secret: int | None = None) -> dict[str, Units]:
  """What a schedule is told, see `schedule.make_schedule`; `secret` is what draws are made of."""
  units = sampled_units(values)
  return {'units': units._replace(secret=secret)} if units else {}


def gradient_maker(private: Private | None, schedule: Schedule) -> dict[str, Callable]:
  """What `round.federated_algorithm` is told, so that gradients of steps are private."""
  if private is None or schedule.units is None:
    return {}
  layout = schedule.layout
  return {'gradient': partial(
    private_gradient, private=private, together=layout.together, drawn=layout.drawn)}

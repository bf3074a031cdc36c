"""What is shown while a round computes: a forecast by the clock, or every step as it ends."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from fedmedjax.experiment.placing import steps_computed
from fedmedjax.experiment.round_log import participant_names
from fedmedjax.experiment.types import Study
from fedmedjax.fed.participation import Participation
from fedmedjax.runtime.progress import Forecast, Reporter
from fedmedjax.train import duration
from fedmedjax.train.memory import Plan

# Rounds before, the latest, whose seconds the next one is expected to take.
_LATEST = 3
# A first round of less than so much arithmetic is over before its products are counted and timed,
# which takes seconds. A step costs about six FLOP for each parameter and token.
_WORTH, _FLOP = 1e12, 6


class StepDisplay:
  """Shows every step of a round: the compiled program calls it on the host after each."""

  def __init__(self):
    self.names: tuple[str, ...] = ()
    self.advance: Callable = lambda count, note: None

  def __call__(self, site, step, loss, active) -> None:
    if active:
      self.advance(1, f'{self.names[int(site)]} loss {float(loss):.3f}')


@contextmanager
def shown(
  study: Study, reporter: Reporter, display: StepDisplay, line: dict, forecast: Forecast | None
) -> Iterator[None]:
  """Shows the progress of a round while this is open; `line` is the part known before it.

  How long it took is said in its sentence, see `round_log.round_sentence`.
  """
  label = f'round {line["round"]}/{study.options.rounds}'
  if not study.options.steps:
    with reporter.clock(label, forecast, last_line=False):
      yield
    return
  display.names = participant_names(study)
  with reporter.task(label, line['local_steps'], last_line=False) as display.advance:
    yield


def forecast(
  study: Study, plan: Plan, participation: Participation, inputs: tuple, line: dict,
  lines: Sequence[dict],
) -> Forecast | None:
  """How long a round should take: as the rounds before, a first one by its matrix products.

  Args:
    study, plan, participation, inputs: of the round.
    line: the part of the round's line that is known before it.
    lines: of the rounds before.

  Returns:
    None where every step is shown, and for a first round that is short or has no products.
  """
  if study.options.steps:
    return None
  computed = float(steps_computed(study, plan.execution.chunk, participation))
  alike = [
    earlier for earlier in lines if earlier.get('useful_step_share')
    and plan.execution._asdict().items() <= earlier.items()][-_LATEST:]
  if alike:
    seconds = sum(earlier['seconds'] for earlier in alike)
    steps = sum(earlier['local_steps'] / earlier['useful_step_share'] for earlier in alike)
    return Forecast(computed * seconds / steps, 'from the rounds before')
  if _FLOP * study.trainable.whole_parameters * line['tokens'] < _WORTH:
    return None
  seconds = duration.round_seconds(study, plan, inputs, computed)
  return None if seconds is None else Forecast(seconds, 'from its matrix products')

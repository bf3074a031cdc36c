"""Rounds of a prepared study, without files; and a reporter that stops a run where it says so."""

import jax
import numpy as np
from rich.console import Console

from fedmedjax.data import schedule as schedules
from fedmedjax.fed.types import LocalData
from fedmedjax.runtime.progress import Reporter


def play_rounds(study, rounds: int, key: int = 0) -> tuple:
  """(the state, the metrics of each round) after so many rounds, of one compiled program; its keys
  are `key` and those that follow."""
  state, reports = study.algorithm.init(study.trainable.adapter), []
  for number in range(rounds):
    batches, mask = schedules.round_arrays(study.schedule, number)
    weights = study.schedule.weights
    state, metrics = study.algorithm.round(
      state, study.trainable.base, LocalData(batches, mask, weights), np.arange(len(weights)),
      study.validation, jax.random.key(key + number))
    reports.append(jax.device_get(metrics))
  assert study.algorithm.round._cache_size() == 1
  return state, reports


class Quiet(Reporter):
  """Shows nothing, and stops the program at a sentence that begins so."""

  def __init__(self, stop_at: str = 'never'):
    super().__init__(Console(quiet=True))
    self._stop_at = stop_at

  def say(self, *words):
    if str(words[0]).startswith(self._stop_at):
      raise KeyboardInterrupt

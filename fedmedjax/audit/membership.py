"""Membership inference by loss: can notes that were trained on be told from those that were not?

Yeom et al., "Privacy Risk in Machine Learning", CSF 2018, arXiv:1709.01604: an example of low loss
was probably trained on. The calibrated attack takes off the loss of the untrained model, so that
easy texts do not look like known ones (Watson et al., "On the Importance of Difficulty Calibration
in Membership Inference Attacks", ICLR 2022, arXiv:2111.08440). What counts are true positives at
few false ones (Carlini et al., "Membership Inference Attacks From First Principles", S&P 2022,
arXiv:2112.03570): an attack that is sure of a few people harms these.

Letters: n members, m others, I and J sources of them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedmedjax.eval.intervals import Estimate, Part, estimate

# Shares of false positives at which true ones are counted.
FALSE = (0.001, 0.01)


class Scores(NamedTuple):
  """An attack's scores of some examples, higher for those that look trained on."""

  values: np.ndarray       # f64[n]
  sources: tuple[str, ...]  # n, the article, trial or patient of each


def wins(members: Scores, others: Scores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(f64[I, J] pairs in which the member's score is higher, ties half; f64[I], f64[J] examples)."""
  mine, of_mine = np.unique(members.sources, return_inverse=True)
  theirs, of_theirs = np.unique(others.sources, return_inverse=True)
  won = np.zeros((len(mine), len(theirs)))
  for place in range(len(theirs)):
    ranked = np.sort(others.values[of_theirs == place])
    below = np.searchsorted(ranked, members.values, 'left')
    upto = np.searchsorted(ranked, members.values, 'right')
    won[:, place] = np.bincount(of_mine, (below + upto) / 2, len(mine))
  return (won, np.bincount(of_mine, minlength=len(mine)).astype(float),
          np.bincount(of_theirs, minlength=len(theirs)).astype(float))


def area(members: Scores, others: Scores, samples: int, seed: int) -> Estimate:
  """The area under the curve of true over false positives: the chance that of a member and another
  example the member has the higher score.

  Its 95 % interval is over the sources of both, each drawn with replacement; see
  `eval/intervals.py`.

  Args:
    members, others: the scores.
    samples: draws.
    seed: of the draws.
  """
  won, mine, theirs = wins(members, others)
  rng = np.random.default_rng((seed, 25))

  def drawn(number: int) -> np.ndarray:
    return rng.multinomial(number, np.full(number, 1 / number), samples).astype(float)

  value, parts = float(won.sum() / (mine.sum() * theirs.sum())), []
  if len(mine) > 1:
    times = drawn(len(mine))
    parts.append(_part(times @ won.sum(1) / (times @ mine * theirs.sum()), len(mine)))
  if len(theirs) > 1:
    times = drawn(len(theirs))
    parts.append(_part(times @ won.sum(0) / (times @ theirs * mine.sum()), len(theirs)))
  return estimate(value, parts, (0.0, 1.0))


def _part(draws: np.ndarray, number: int) -> Part:
  """The standard error over `number` sources, of which a bootstrap's variance lacks 1 / number."""
  return Part(float(draws.std() * np.sqrt(number / (number - 1))), number - 1)


def caught(members: np.ndarray, others: np.ndarray, false: float) -> float:
  """The share of members f64[n] above a threshold that at most this share of others f64[m] passes.

  With fewer than 1 / false others it is the share of members above all of them.
  """
  ranked = np.sort(others)[::-1]
  return float(np.mean(members > ranked[min(int(false * len(ranked)), len(ranked) - 1)]))


def attack(members: Scores, others: Scores, samples: int, seed: int) -> dict[str, Any]:
  """What an attack finds: {'auc', 'low', 'high' (null without sources), 'tpr': [one a FALSE]}."""
  found = area(members, others, samples, seed)
  return {
    'auc': found.value, 'low': found.low, 'high': found.high,
    'tpr': [caught(members.values, others.values, false) for false in FALSE]}


def attacks(
  trained: tuple[np.ndarray, np.ndarray], untrained: tuple[np.ndarray, np.ndarray],
  sources: tuple[Sequence[str], Sequence[str]], samples: int, seed: int,
) -> dict[str, Any]:
  """All attacks on members and others.

  Args:
    trained: losses (f64[n] of members, f64[m] of others) of the run's model, nats per token.
    untrained: the same of the model before training.
    sources: of the members and of the others.
    samples, seed: of the intervals.

  Returns:
    'loss' and 'calibrated', the attacks; 'untrained', the same by the untrained model's loss, which
    cannot know who was trained on: what it finds is how unlike training and test notes are.
  """
  def found(values: Sequence[np.ndarray]) -> dict[str, Any]:
    members, others = (
      Scores(-np.nan_to_num(one, nan=np.inf), tuple(names))
      for one, names in zip(values, sources, strict=True))
    return attack(members, others, samples, seed)

  differences = [after - before for after, before in zip(trained, untrained, strict=True)]
  return {'loss': found(trained), 'calibrated': found(differences), 'untrained': found(untrained)}

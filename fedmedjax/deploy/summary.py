"""summary.json of a study between hospitals, at the server."""

from typing import Any

from fedmedjax import tree
from fedmedjax.deploy.told_scores import Heard
from fedmedjax.experiment.deployed import ServerStudy
from fedmedjax.runtime.cli import versions
from fedmedjax.store import files


def summary_of(
  study: ServerStudy, lines: list[dict], heard: dict[str, Heard], seconds: float,
  warnings: list[str],
) -> dict[str, Any]:
  """summary.json of a deployed study: that of a run, with the scores that sites have told."""
  trainable, options = study.trainable, study.options
  # What the same exchanges would have cost with the whole model, both ways.
  exchanges = sum(
    count > 0 for line in lines for count in line['site_bytes_up'] + line['site_bytes_down'])
  sources = [heard[name].sources if name in heard else None for name in study.agreed.names]
  return files.plain({
    'preset': options.preset, 'seed': options.seed, 'rounds': len(lines), 'deployed': True,
    'own_parts': options.own_parts, 'sites': list(study.agreed.names), 'external': [],
    # Sites score on their own test notes, and nobody else has them.
    'scores': {name: one.scores for name, one in heard.items() if one.scores},
    'answers': {name: one.answers for name, one in heard.items() if one.answers},
    'test_sources': None if None in sources else sources,
    'heard': {name: one._asdict() for name, one in heard.items()},
    'local_steps': sum(line['local_steps'] for line in lines),
    'warnings': warnings, 'bytes_up': sum(line['bytes_up'] for line in lines),
    'bytes_down': sum(line['bytes_down'] for line in lines),
    'bytes_full_model': trainable.whole_bytes * exchanges,
    'adapter_parameters': tree.size(study.adapter),
    'base_parameters': trainable.whole_parameters, 'wall_seconds': seconds,
    'site_weights': [line['weights'] for line in lines],
    'quarantined': sum(len(line['quarantined']) for line in lines),
    'skipped_rounds': sum(bool(line.get('skipped')) for line in lines),
    'absent': sum(len(line['absent']) for line in lines), 'versions': versions()})

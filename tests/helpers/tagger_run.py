"""A finished run of the word tagger on very little data, which takes seconds."""

from pathlib import Path

import pytest
from shared_runs import shared_folder

from fedmedjax import main
from fedmedjax.compare import ablation

SHRINK = [
  '--config.tagger.width=8', '--config.tagger.buckets=64', '--config.lora.rank=2',
  '--config.data.synthetic_notes=6', '--config.data.max_train_sentences=12',
  '--config.data.validation_examples=2', '--config.fed.rounds=2', '--config.fed.local_steps=2',
  '--config.fed.batch_size=2', '--config.eval.max_examples=30', '--config.eval.batch_size=32',
  '--config.eval.bootstrap_samples=20', '--config.checkpoint.keep=1',
  '--config.optim.learning_rate=0.05']


def command(workdir: Path, *more: str) -> list[str]:
  """Seed 4 of fed_medlora where the largest of five sites is wrong: two rounds."""
  setting = [f'--config.{key}={value}' for key, value in
             ablation.SETTINGS['wrong_largest'].changes.items()]
  return ['fedmedjax', '--config=configs/ablation.py:fed_medlora', f'--workdir={workdir}', *SHRINK,
          *setting, '--config.seed=4', *more]


def tagger_run(factory: pytest.TempPathFactory) -> Path:
  """Its folder, one for all processes of a session; tests only read it."""
  def fill(workdir: Path) -> None:
    assert main.main(command(workdir)) == 0

  return shared_folder(factory, 'tagger_run', fill)

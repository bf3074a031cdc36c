"""Ablations of methods in seconds a run: five sites dealt out of two cohorts, a tiny model.

    python scripts/tiny_model.py --output=models/tiny
    python scripts/ablation.py --config=configs/ablation_tiny.py --output=runs/ablation
"""

from fedmedjax.experiment import defaults


def get_config(preset: str = 'fed_medlora_plus'):
  config = defaults.get_config(preset)
  # What scripts/tiny_model.py wrote.
  config.model.update(path='models/tiny', remat='none')
  config.lora.update(rank=8, alpha=64.0)
  config.data.update(
    sites=('synthetic_icu', 'synthetic_dictation'), external=(), synthetic_notes=40,
    max_length=64, validation_examples=4)
  config.data.partition.update(kind='iid', unit='sentence', sites=5)
  config.fed.update(rounds=4, local_steps=4, batch_size=4, chunk=1, faulty=1, trim=0.2)
  config.optim.update(learning_rate=2e-3, sgd_learning_rate=0.02)
  config.fed.shapes = 1  # all cells share programs
  config.eval.update(max_examples=40, bootstrap_samples=200)
  config.log.steps = False
  return config

"""Methods against each other in seconds a run: a word tagger, five sites dealt out of two cohorts.

Chosen on plain fed_medlora with equal sound sites alone, for it to learn: widths of 64 to 1024
numbers, 2048 or 4096 buckets, rates of 0.003 to 0.05, alpha 8 to 64, 4 or 8 examples a step, 6 to
12 rounds of 5 to 20 steps; and sgd_learning_rate of 0.03 to 1 with plain steps. F1 was 0.0 to 0.65
(here 0.6, in half a second a run), with rates of 0.05, or of 0.3 and more of plain steps, at 0.
"""

from fedmedjax.experiment import defaults


def get_config(preset: str = 'fed_medlora_plus'):
  config = defaults.get_config(preset)
  config.lora.update(rank=8, alpha=16.0)
  config.tagger.update(width=64, buckets=2048, max_length=24)
  config.data.update(
    sites=('synthetic_icu', 'synthetic_dictation'), external=(), synthetic_notes=48,
    max_train_sentences=100, validation_examples=16)
  config.data.partition.update(kind='iid', unit='sentence', sites=5)
  config.fed.update(
    learner='tagger', rounds=10, local_steps=10, batch_size=8, chunk=0, faulty=1, trim=0.2)
  # How long sites take matters to fedbuff alone: the slowest of five some three times the fastest.
  config.simulation.update(step_seconds=1.0, speed_spread=0.5)
  config.optim.update(learning_rate=1e-2, sgd_learning_rate=0.1)
  config.eval.update(zero_shot=False, batch_size=128, bootstrap_samples=200)
  config.log.steps = False
  return config

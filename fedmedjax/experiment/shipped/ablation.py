"""Methods against each other in seconds a run: a word tagger, five sites dealt out of two cohorts.
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
    learner='tagger', rounds=6, local_steps=10, batch_size=8, chunk=0, faulty=1, trim=0.2)
  config.optim.update(learning_rate=1e-2, sgd_learning_rate=0.1)
  config.eval.update(zero_shot=False, batch_size=128, bootstrap_samples=200)
  config.log.steps = False
  return config

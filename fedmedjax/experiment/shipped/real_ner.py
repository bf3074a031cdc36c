"""Four public corpora as sites, a fifth as external cohort; SmolLM2-135M on two CPU cores."""

from fedmedjax.experiment import defaults


def get_config(preset: str = 'fed_medlora_plus'):
  config = defaults.get_config(preset)
  config.data.update(
    sites=('maccrobat2020', 'chia', 'phee', 'bc5cdr'), external=('ncbi_disease',),
    validation_examples=16, max_length=256)
  # 4 x 20 = 80 local steps of 8 examples a site.
  config.fed.update(rounds=4, local_steps=20, batch_size=8, chunk=1)
  config.optim.learning_rate = 1e-3
  config.eval.update(max_examples=100, max_new_ratio=2.0)
  return config

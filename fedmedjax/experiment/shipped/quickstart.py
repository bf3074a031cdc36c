"""First run: three synthetic cohorts, SmolLM2-135M, entity recognition, minutes on two cores."""

from fedmedjax.experiment import defaults


def get_config(preset: str = 'fed_medlora_plus'):
  config = defaults.get_config(preset)
  config.fed.update(rounds=2, local_steps=10, batch_size=4, chunk=1)
  config.optim.learning_rate = 1.5e-3
  config.data.update(validation_examples=4, max_length=256)
  config.eval.update(max_examples=12, max_zero_shot=6, max_new_ratio=2.0)
  return config

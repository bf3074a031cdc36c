"""The study on public corpora: five regimes, meant for 75 minutes of two CPU cores.

    python -m fedmedjax.compare --config=fedmedjax:real_study --workdir=runs/study
"""

from fedmedjax.experiment.shipped import real_ner


def get_config(preset: str = 'fed_medlora_plus'):
  config = real_ner.get_config(preset)
  # 6 x 14 = 84 local steps of 4 examples a site. 70 test sentences of each, and
  # 200 of the external cohort, which every adapter answers once.
  config.fed.update(rounds=6, local_steps=14, batch_size=4)
  config.data.validation_examples = 8
  config.eval.update(max_examples=70, max_external=200, cross_site=True)
  return config

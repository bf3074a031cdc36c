"""The reference's BERT baseline: full-model FedAvg, embeddings frozen, batch 64, T=3, E=3.

Give the folder by --config.bert.path, such as Bio_ClinicalBERT converted to safetensors.
"""

from fedmedjax.experiment import defaults


def get_config(preset: str = 'fed_bert'):
  config = defaults.get_config(preset)
  config.fed.update(rounds=3, local_epochs=3, batch_size=64)
  return config

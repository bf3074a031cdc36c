"""DeepSeek-R1-Distill-Llama-8B as llama31_8b.py, with the same architecture and settings.

The weights come from the Hugging Face hub at the first run; a local folder of safetensors is used
instead with --config.model.path=FOLDER.
"""

from fedmedjax.experiment.shipped import llama31_8b


def get_config(preset: str = 'fed_medlora_plus'):
  config = llama31_8b.get_config(preset)
  config.model.path = 'deepseek-ai/DeepSeek-R1-Distill-Llama-8B'
  return config

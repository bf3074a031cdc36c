"""Llama-3.1-8B with the reference's hyper-parameters, for one GPU or TPU.

Get the weights first, with
`hf download meta-llama/Llama-3.1-8B --local-dir models/llama-3.1-8b`.
The reference keeps the base in NF4; here it is bfloat16 until quantised bases are supported.
"""

from configs import base


def get_config(preset: str = 'fed_medlora_plus'):
  # base.py's defaults are the reference's (METHOD section 6): r 16, alpha 64, seven projections,
  # AdamW 2e-4, cosine with 5 % warm-up, clip 1.0, batch 4, 3 rounds of 2 epochs, 3 sites.
  config = base.get_config(preset)
  config.model.update(path='models/llama-3.1-8b', dtype='bfloat16', remat='full')
  # The reference's 800 tokens include its prompt; ours count from after the instruction (133).
  config.data.max_length = 667
  return config

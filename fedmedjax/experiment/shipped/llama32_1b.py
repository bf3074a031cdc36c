"""Llama-3.2-1B with the reference's hyper-parameters, for one GPU or TPU.

The weights come from the Hugging Face hub at the first run (log in with `hf auth login`); a local
folder of safetensors is used instead with --config.model.path=FOLDER.

Eight GPUs: --config.mesh.site=-1 gives each a copy of the base and its share of the sites.
"""

from fedmedjax.experiment import defaults


def get_config(preset: str = 'fed_medlora_plus'):
  # The defaults are the reference's (see docs/methods.md): r 16, alpha 64, seven projections,
  # AdamW 2e-4, cosine with 5 % warm-up, clip 1.0, batch 4, 3 rounds of 2 epochs, 3 sites.
  config = defaults.get_config(preset)
  config.model.update(
    path='meta-llama/Llama-3.2-1B', dtype='bfloat16', quantization='nf4')
  # The reference's 800 tokens include its prompt; ours count from after the
  # instruction, about 130 tokens for four types (133 with SmolLM2's tokenizer).
  config.data.max_length = 667
  return config

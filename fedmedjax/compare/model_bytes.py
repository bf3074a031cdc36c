"""Bytes of a round of larger models, from their shapes alone."""

from typing import Any

import jax

from fedmedjax import tree
from fedmedjax.experiment.shipped import llama31_8b, llama32_1b, qwen3_4b
from fedmedjax.fed import ledger
from fedmedjax.fed.compression import float32
from fedmedjax.fed.sharing import everything
from fedmedjax.model.files.convert import parameter_count
from fedmedjax.model.llama import LlamaConfig
from fedmedjax.model.lora import LoraConfig, init_adapter
from fedmedjax.runtime.progress import Reporter

# Published shapes, as each model's config.json has them.
_LLAMA3 = dict(
  vocab_size=128256, num_heads=32, num_kv_heads=8, rms_norm_eps=1e-5, rope_theta=5e5,
  max_position_embeddings=131072)
MODELS = {
  'Llama-3.2-1B': (llama32_1b, LlamaConfig(
    **_LLAMA3, hidden_size=2048, intermediate_size=8192, num_layers=16, head_dim=64,
    tie_word_embeddings=True)),
  'Llama-3.1-8B': (llama31_8b, LlamaConfig(
    **_LLAMA3, hidden_size=4096, intermediate_size=14336, num_layers=32, head_dim=128,
    tie_word_embeddings=False)),
  'Qwen3-4B': (qwen3_4b, LlamaConfig(
    vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_layers=36, num_heads=32,
    num_kv_heads=8, head_dim=128, rms_norm_eps=1e-6, rope_theta=1e6, max_position_embeddings=40960,
    tie_word_embeddings=True, qk_norm=True)),
}


def ledger_figures(model: str, reporter: Reporter | None = None) -> dict[str, Any]:
  """What one site and round send of a model's adapter in float32, and of the model in bfloat16.

  Nothing is loaded: all of it follows from shapes.
  """
  del reporter
  shipped, shapes = MODELS[model]
  chosen = shipped.get_config('fed_medlora').lora
  adapter = jax.eval_shape(
    lambda key: init_adapter(
      key, shapes, LoraConfig(chosen.rank, chosen.alpha, tuple(chosen.targets))),
    jax.random.key(0))
  sent = ledger.exchange(adapter, everything(), float32())
  parameters = parameter_count(shapes)
  return {
    'rank': chosen.rank, 'targets': len(chosen.targets), 'adapter_parameters': tree.size(adapter),
    'base_parameters': parameters, 'bytes_down': ledger.num_bytes(sent.down),
    'bytes_up': ledger.num_bytes(sent.up), 'bytes_model': 2 * parameters}

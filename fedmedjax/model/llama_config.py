"""The hyper-parameters by which the families of `llama.py`'s decoder differ.

Nothing here knows the name of a family: `files/hf_config.py` and `files/gguf.py` read these values
from a model's own files.
"""

import dataclasses

# The seven linear layers of a block, by their Hugging Face names.
PROJECTIONS = ('q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj')
# Those of a block with fused ones: queries, keys and values are one product, gate and up another.
FUSED_PROJECTIONS = ('qkv_proj', 'o_proj', 'gate_up_proj', 'down_proj')


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
  """Hyper-parameters, always read from the file that holds the weights (`files/load.py`)."""

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  rms_norm_eps: float
  rope_theta: float
  max_position_embeddings: int
  tie_word_embeddings: bool
  # Divisor of each rotary frequency, [rotary width / 2]; empty = all 1. Llama 3.1's scaling.
  rope_divisors: tuple[float, ...] = ()
  # Projections with a bias.
  biases: tuple[str, ...] = ()
  # RMS norm of every head's query and key, before the rotation.
  qk_norm: bool = False
  # Per layer, the keys that a query sees, its own included; 0 = all. Empty = all in all layers.
  windows: tuple[int, ...] = ()
  # The nonlinearity of the gate, a key of `llama.ACTIVATIONS`.
  activation: str = 'silu'
  # Whether a norm multiplies by 1 + its weight.
  norm_plus_one: bool = False
  # Whether what attention and MLP give is normalised, too, before it is added.
  norms_after: bool = False
  # Whether embeddings are multiplied by the root of their width.
  scaled_embedding: bool = False
  # Scores are divided by the root of it; 0 = of head_dim.
  query_scalar: float = 0.0
  # Scores of attention stay between minus and plus this (`attention.capped`); 0 = no limit.
  score_cap: float = 0.0
  # The same of the logits.
  logit_cap: float = 0.0
  # Base of the rotation in layers with a window, whose frequencies have no divisors; 0 = as
  # in all layers.
  local_rope_theta: float = 0.0
  # How many of a head's dimensions are rotated, the first ones; 0 = all.
  rotary_dim: int = 0
  # Divisors in place of rope_divisors where text reaches beyond `rope_original` positions.
  long_rope_divisors: tuple[float, ...] = ()
  rope_original: int = 0
  # Factor of the rotated queries and keys.
  rope_factor: float = 1.0
  # Whether the projections are FUSED_PROJECTIONS.
  fused: bool = False

  @property
  def projections(self) -> tuple[str, ...]:
    """Names of a block's linear layers, which LoRA can adapt."""
    return FUSED_PROJECTIONS if self.fused else PROJECTIONS

  def projection_shape(self, name: str) -> tuple[int, int]:
    """(D_in, D_out) of a projection, fused or not."""
    width, heads = self.hidden_size, self.num_heads * self.head_dim
    kv = self.num_kv_heads * self.head_dim
    return {
      'q_proj': (width, heads), 'k_proj': (width, kv), 'v_proj': (width, kv),
      'qkv_proj': (width, heads + 2 * kv), 'o_proj': (heads, width),
      'gate_proj': (width, self.intermediate_size), 'up_proj': (width, self.intermediate_size),
      'gate_up_proj': (width, 2 * self.intermediate_size),
      'down_proj': (self.intermediate_size, width),
    }[name]

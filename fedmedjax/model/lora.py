"""LoRA adapters as plain trees: make, check, merge.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685. An adapter is
{'layers': {projection: {'a': f32[L, D_in, rank], 'b': f32[L, rank, D_out]}}}, the `lora`
collection of `llama.py`. Projections may have unlike ranks; the scale is one for all.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedmedjax.model.llama_config import FUSED_PROJECTIONS, PROJECTIONS, LlamaConfig
from fedmedjax.types import InputError

_MLP = ('gate_proj', 'up_proj', 'gate_up_proj', 'down_proj')
# All projections that a model may have. A fresh adapter is drawn by the place in it.
_NAMES = tuple(dict.fromkeys((*PROJECTIONS, *FUSED_PROJECTIONS)))


class LoraConfig(NamedTuple):
  """Rank, alpha and the adapted projections.

  The scale of all products is alpha / rank, or alpha / sqrt(rank) with rank-stabilised LoRA
  (Kalajdzievski, arXiv:2312.03732).
  """

  rank: int
  alpha: float
  targets: tuple[str, ...]
  use_rslora: bool = False

  @property
  def scale(self) -> float:
    return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


def check_lora(lora: LoraConfig, config: LlamaConfig | None = None) -> None:
  """Raises InputError unless every target exists and rank and alpha make sense.

  Args:
    lora: what is checked.
    config: the model's; None = some model has to have the targets.
  """
  names = config.projections if config else _NAMES
  unknown = sorted(set(lora.targets) - set(names))
  if unknown or not lora.targets or len(set(lora.targets)) != len(lora.targets):
    raise InputError(
      f'config.lora.targets={lora.targets!r}: a non-empty subset of {names}, '
      f'each once, is allowed{" for this model" if config else ""}')
  if lora.rank < 1:
    raise InputError(f'config.lora.rank={lora.rank}: an integer >= 1 is allowed')
  if not (lora.alpha > 0 and math.isfinite(lora.alpha)):
    raise InputError(f'config.lora.alpha={lora.alpha}: a finite number > 0 is allowed')


def init_adapter(key: jax.Array, config: LlamaConfig, lora: LoraConfig) -> dict:
  """A fresh adapter: A f32[L, D_in, rank] as PEFT draws it, and B f32[L, rank, D_out] zero.

  PEFT draws from U(-1/sqrt(D_in), 1/sqrt(D_in)): it calls Kaiming-uniform with a = sqrt(5) on A,
  which is exactly this bound. The factors are float32 whatever the base is: updates of 1e-4 would
  vanish in bfloat16.

  Args:
    key: of the draw.
    config: the model's.
    lora: rank and adapted projections, checked by `check_lora`.

  Returns:
    {'layers': {projection: {'a': A, 'b': B}}}.
  """
  layers = {}
  # Sorted names: a projection's draw must not depend on the order in which targets are listed.
  for name in sorted(lora.targets):
    d_in, d_out = config.projection_shape(name)
    bound = d_in**-0.5
    layers[name] = {
      'a': jax.random.uniform(
        jax.random.fold_in(key, _NAMES.index(name)),
        (config.num_layers, d_in, lora.rank), jnp.float32, -bound, bound),
      'b': jnp.zeros((config.num_layers, lora.rank, d_out), jnp.float32),
    }
  return {'layers': layers}


# Projection -> its module inside a Hugging Face block.
PEFT_MODULES = {
  name: f"{'mlp' if name in _MLP else 'self_attn'}.{name}" for name in _NAMES}

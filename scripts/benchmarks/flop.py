"""What a training step costs by a formula, the same for every way to do it."""

from fedmedjax.model.llama import LlamaConfig
from fedmedjax.model.lora import LoraConfig

FLOP_FORMULA = (
  'FLOP = (4 N + 6 L) x unique tokens + 4 V D x supervised places; N = weights of the seven '
  'projections of all layers, L = parameters of the adapter, V D = the head. A weight costs 2 '
  'forward, 2 backward to its input and, if it is trained, 2 more. Not counted: attention '
  'products, norms, recomputation (remat), padding, an instruction that is fed more than once.')


def training_flop(
  config: LlamaConfig, lora: LoraConfig, tokens: int, supervised: int
) -> float:
  """FLOP_FORMULA of `tokens` unique tokens, at `supervised` places of which the head is applied."""
  shapes = {name: config.projection_shape(name) for name in config.projections}
  layers = config.num_layers * sum(d_in * d_out for d_in, d_out in shapes.values())
  adapter = config.num_layers * sum(lora.rank * sum(shapes[name]) for name in lora.targets)
  head = config.vocab_size * config.hidden_size
  return (4 * layers + 6 * adapter) * tokens + 4 * head * supervised

"""The method part of a configuration: config.fed to the parts of a federated algorithm."""

from ml_collections import ConfigDict

from fedmedjax.fed.aggregate import adaptive_mean
from fedmedjax.fed.local import adamw
from fedmedjax.fed.rules import plain
from fedmedjax.fed.server import SERVER_OPTIMIZERS


def algorithm_parts(config: ConfigDict) -> dict:
  """Keyword arguments of `federated_algorithm` that the method decides."""
  fed, optim = config.fed, config.optim
  return dict(
    optimizer=adamw(
      optim.learning_rate, b1=optim.b1, b2=optim.b2, eps=optim.eps,
      weight_decay=optim.weight_decay, clip_norm=optim.clip_norm,
      warmup_share=optim.warmup_share),
    rule=plain(),
    aggregator=adaptive_mean(
      size_power=fed.size_power, loss_power=fed.loss_power, temperature=fed.temperature,
      floor=fed.floor, ema=fed.ema),
    server_optimizer=SERVER_OPTIMIZERS[fed.server_optimizer](
      learning_rate=fed.server_learning_rate, momentum=fed.server_momentum, b2=fed.server_b2,
      tau=fed.server_tau),
  )


def adds_aggregate(fed: ConfigDict) -> bool:
  """Whether the server's step is the aggregate itself, which every round then checks."""
  return fed.server_optimizer == 'fedavg' and fed.server_learning_rate == 1.0

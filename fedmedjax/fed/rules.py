"""Local rules: what is added to a site's gradient (DESIGN table `rule`)."""

from fedmedjax.fed.types import LocalRule


def plain() -> LocalRule:
  """FedAvg: nothing. McMahan et al., arXiv:1602.05629."""
  return LocalRule(
    init=lambda adapter: ((), ()),
    correct=lambda grad, adapter, anchor, server_ctrl, site_ctrl: grad,
    finish=lambda anchor, adapter, num_steps, server_ctrl, site_ctrl: (site_ctrl, ()),
  )

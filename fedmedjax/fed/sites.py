"""How the sites of a cohort are laid on the hardware; the results do not depend on it."""

import jax


def map_sites(chunk: int):
  """A map over the leading (site) axis of every argument.

  Args:
    chunk: sites computed at once. 0 = all of them (vmap: the sites fold into the batch of each
      frozen matrix product), 1 = one after the other (least memory; on CPU the fastest), n =
      chunks of n.
  """
  if chunk == 0:
    return jax.vmap
  batch_size = None if chunk == 1 else chunk
  return lambda fn: lambda *args: jax.lax.map(lambda xs: fn(*xs), args, batch_size=batch_size)

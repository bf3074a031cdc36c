"""What a step costs on an invented accelerator, by the level of remat."""

from fedmedjax.train.roofline import START, Peak, Work

# A second for 100 FLOP, or for 10 bytes.
PEAK = Peak(100.0, 10.0)


def works(weights: float) -> dict[str, Work]:
  """Of a site's step 1 s of products where nothing is computed again, and that once costs 0.1 s.

  A chunk's step takes 0.1 s to start its products.
  """
  starts = round(0.1 / START)
  return {
    'none': Work(100, weights, 0, starts), 'products': Work(100, weights, 0.2, starts),
    'narrow_products': Work(125, 1.25 * weights, 0.4, starts),
    'full': Work(150, 1.5 * weights, 0.6, starts)}

"""Durations and counts as every screen, page and message says them."""


def duration(seconds: float) -> str:
  """Seconds in words, the same everywhere: '8 s', '1:40 min', '3:05 h'."""
  whole = round(seconds)
  if whole < 60:
    return f'{whole} s'
  if whole < 3600:
    return f'{whole // 60}:{whole % 60:02d} min'
  minutes = round(seconds / 60)
  return f'{minutes // 60}:{minutes % 60:02d} h'


def many(count: int, what: str) -> str:
  """A count and what is counted: '1 run', '2 runs', '1,200 runs'."""
  return f'{count:,} {what}{"s" * (count != 1)}'

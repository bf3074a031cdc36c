"""Rows dealt out by their targets, which take the place of entity types there."""

from collections import Counter
from collections.abc import Sequence

from fedmedjax.data.damage import CLEAN, Damage
from fedmedjax.data.text_task import MOST_LABELS, TEXT
from fedmedjax.types import Document, InputError, SiteCorpus, Span


def row_types(
  sources: Sequence[SiteCorpus], kind: str, damage: Damage = CLEAN
) -> tuple[str, ...]:
  """The types that rows of a pool are dealt out by; () where notes are dealt out.

  They are the different targets, the commonest first, or TEXT alone where there are too many.

  Args:
    sources: the pooled sites.
    kind: of the partition, see `partition.KINDS`.
    damage: that some sites would have.

  Raises:
    InputError: the kind, or damage, is of annotated types.
  """
  targets = Counter(
    note.target for source in sources for note in source.train if note.target is not None)
  if not targets:
    return ()
  if kind == 'labels':
    raise InputError(
      "config.data.partition.kind='labels': leaves types unannotated, and rows have none; 'iid', "
      "'types' (the targets), 'quantity' and 'style' are allowed")
  for key in ('corrupted', 'corrupted_sites', 'missing_sites'):
    if value := getattr(damage, key):
      raise InputError(
        f'config.data.partition.{key}={value}: damages annotated entities, and rows have none; '
        f'{type(value)()} is allowed')
  if len(targets) <= MOST_LABELS:
    return tuple(target for target, _ in targets.most_common())
  if kind == 'types':
    raise InputError(
      f"config.data.partition.kind='types': deals rows out by their targets, and {len(targets)} "
      f"different ones are too many; at most {MOST_LABELS} are allowed, or kind 'iid', 'quantity' "
      "or 'style'")
  return (TEXT,)


def with_target(row: Document, types: Sequence[str]) -> Document:
  """The row with its target as a span, for a partitioner to look at."""
  kind = row.target if row.target in types else TEXT
  return row._replace(spans=(Span(0, len(row.text), kind),))

"""Writes annotated notes in another format, with their own names or with a mapping's.

    python scripts/convert.py --input=notes --format=i2b2 --output=out --to=brat --mapping=i2b2_2010

Formats read: docs/data.md; written: brat (a folder), bigbio_kb (JSON lines), conll (a file,
flat entities only). What could not be kept is counted and printed.
"""

import sys
from collections import Counter
from pathlib import Path

from absl import flags

from fedmedjax.data.formats.mapped import apply_mapping
from fedmedjax.data.formats.mapping import read_mapping
from fedmedjax.data.formats.readers import FORMATS, read_notes
from fedmedjax.data.formats.writers import (
  with_plain_names,
  write_bigbio,
  write_brat,
  write_conll,
)
from fedmedjax.data.schema import read_schema
from fedmedjax.data.statistics import lacking
from fedmedjax.report.terminal import set_aside
from fedmedjax.runtime.cli import guarded, read_flags
from fedmedjax.types import Document, InputError


def _write_conll(path: Path, documents: list[Document]) -> Counter:
  types = sorted({span.type for document in documents for span in document.spans})
  return write_conll(path, documents, types)


WRITERS = {'brat': write_brat, 'bigbio_kb': write_bigbio, 'conll': _write_conll}


def convert(
  source: Path, form: str, output: Path, to: str, mapping: str, schema: str = ''
) -> str:
  """Reads, maps and writes -> a sentence on what there was and what was left out."""
  for flag, name, table in (('format', form, FORMATS), ('to', to, WRITERS)):
    if name not in table:
      raise InputError(f'--{flag}={name!r}: one of {", ".join(table)} is allowed')
  documents, counts = read_notes(source, FORMATS[form])
  if mapping:
    documents, found = apply_mapping(documents, read_mapping(mapping, read_schema(schema)))
    documents = documents if to == 'bigbio_kb' else [*map(with_plain_names, documents)]
    counts += found
  left = WRITERS[to](output, documents) or Counter()
  counts.update({f'used_{key}': left[key] for key in ('nested', 'crossing')})
  return (f'{output}: {len(documents)} documents, {sum(len(d.spans) for d in documents)} spans, '
          f'{sum(len(d.relations) for d in documents)} relations; set aside or repaired: '
          f'{set_aside(counts) or "nothing"}'
          + (f'; not in the mapping: {left_out}' if (left_out := lacking(counts)) else ''))


def define(values: flags.FlagValues) -> None:
  for name, said in (('input', 'File or folder of notes.'), ('format', 'Its format.'),
                     ('output', 'File or folder to write.'), ('to', 'Its format.')):
    flags.DEFINE_string(name, None, said, flag_values=values)
  flags.DEFINE_string('mapping', '', 'A shipped mapping or a .toml file.', flag_values=values)
  flags.DEFINE_string(
    'schema', '', "A shipped schema or a .toml file; '' = the paper's.", flag_values=values)


def main(argv: list[str]) -> int:
  def body():
    values = read_flags(argv, define, needed=('input', 'format', 'output', 'to'))
    print(convert(Path(values.input), values.format, Path(values.output), values.to,
                  values.mapping, values.schema))

  return guarded(body)


if __name__ == '__main__':
  sys.exit(main(sys.argv))

"""Data sets of the `datasets` package that lie on disk: saved folders and Parquet files.

Nothing is fetched and no script of a data set is run.
"""

from collections import Counter
from pathlib import Path

from fedmedjax.data.formats import bigbio, reference
from fedmedjax.types import Document, InputError

_INSTALL = 'pip install datasets'
# Names of the column of tags; the first that is there is read.
_TAGS = ('tags', 'ner_tags')


def read_datasets(path: str | Path) -> tuple[list[Document], Counter]:
  """Reads a folder of `save_to_disk` (one split), or a Parquet file.

  Rows of `bigbio_kb` are documents. Rows with `tokens` and `tags` (or `ner_tags`; names or
  numbers of a ClassLabel), `html`, or `input` and `output` are sentences, as in
  `reference.read_reference`.

  Args:
    path: the folder or file.

  Returns:
    The documents, and the counts of the form that the columns have. Errors name the row as they
    name a line elsewhere, the first row being 1.
  """
  path = Path(path)
  try:
    import datasets
    import pyarrow.ipc
    import pyarrow.parquet
  except ImportError:
    raise InputError(f"{path}: the format 'datasets' needs a package; {_INSTALL}") from None
  if not path.exists():
    raise InputError(f'cannot read {path}: there is no such folder or file')
  try:
    if path.is_dir():
      # Arrow trusts offsets as they stand in a file; wrong ones would end the process.
      for file in path.glob('*.arrow'):
        with pyarrow.ipc.open_stream(file) as stream:
          stream.read_all().validate(full=True)
      rows = datasets.Dataset.load_from_disk(str(path), keep_in_memory=True)
    else:
      table = pyarrow.parquet.read_table(path)
      table.validate(full=True)
      # Any fingerprint: to compute it takes longer than to read a file, and nothing is cached.
      rows = datasets.Dataset(table, fingerprint='read')
  except Exception as error:  # whatever a damaged file makes of Arrow
    line = (str(error).splitlines() or [''])[0]
    raise InputError(f'cannot read {path} as a data set: {type(error).__name__}: {line}') from None
  numbered = (((path, i), row) for i, row in enumerate(rows, 1))
  columns = set(rows.column_names)
  tags = next((name for name in _TAGS if name in columns), '')
  if {'passages', 'entities'} <= columns:
    documents, counts = bigbio.documents_of(numbered)
  elif {'tokens', tags} <= columns or 'html' in columns or {'input', 'output'} <= columns:
    names = _tag_names(rows.features.get(tags))
    records = ((place, {**row, 'tags': row.get(tags)}) for place, row in numbered)
    documents, counts = reference.documents_of(path.stem, records, names)
  else:
    raise InputError(f'{path}: its columns are {", ".join(sorted(columns))}; those of bigbio_kb, '
                     'or tokens and tags, html, or input and output are expected')
  if not documents:
    raise InputError(f'no row in {path}')
  return documents, counts


def _tag_names(feature):
  """The function (number) -> name of a list of ClassLabels; unknown numbers become texts."""
  names = getattr(getattr(feature, 'feature', None), 'names', None) or []
  return lambda number: names[number] if 0 <= number < len(names) else str(number)

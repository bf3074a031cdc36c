"""Annotates a folder of notes with the adapter of a finished run; the same command again resumes.

    python -m fedmedjax.predict --adapter=runs/a/adapter --input=notes --output=out --format=brat
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from fedmedjax.runtime.cli import guarded, read_flags, set_up

# Names in predict.forms.FORMS, which imports too much for --help; a test holds both together.
FORMATS = ('brat', 'jsonl', 'html', 'label_studio', 'doccano', 'uima_xmi', 'uima_json', 'csv',
           'parquet')


def define(values: flags.FlagValues) -> None:
  def text(name: str, default: str | None, meaning: str) -> None:
    flags.DEFINE_string(name, default, meaning, flag_values=values)

  text('adapter', None, "A run's adapter, or its workdir.")
  text('input', None, 'Folder of notes: .txt files in UTF-8, in any sub-folders; or a file of '
       'rows (.jsonl, .csv, .tsv, .parquet) or of FHIR (.json, .ndjson), or a folder of these.')
  text('output', None, 'Folder to write.')
  text('format', 'brat', f'One of {", ".join(FORMATS)}.')
  text('text_column', '', "Column or key of the text in rows; '' = text or a usual name of it.")
  text('id_column', '', "Column or key of the id; '' = note_id, id or the like, else row numbers.")
  text('site', '', "Site of the run whose prompts are used; '' = that which asks for most.")
  text('types', '', "What to ask for instead, such as 'problem,drug,drug.route'.")
  text('base', None, "Base model, where the run's config.json does not say it; '' = SmolLM2.")
  text('dtype', None, "float32 or bfloat16; by default the run's.")
  text('matmul', None, "float32, bfloat16 or auto (what is faster here), see config.model.matmul; "
       "by default the run's.")
  text('quantization', None, "none, int8 or nf4; by default the run's.")
  for name, meaning in (
      ('batch_size', 'Sentences decoded at once'), ('mesh_site', 'config.mesh.site'),
      ('mesh_fsdp', 'config.mesh.fsdp'), ('mesh_tensor', 'config.mesh.tensor')):
    flags.DEFINE_integer(name, None, f"{meaning}; by default the run's.", flag_values=values)


def main(argv: Sequence[str] | None = None) -> int:
  """The program -> its exit status; `argv` is sys.argv where none is given."""
  argv = sys.argv if argv is None else argv

  def body():
    values = read_flags(argv, define, needed=('adapter', 'input', 'output'))
    # Imported here since they take seconds: --help and mistakes are answered before.
    from fedmedjax.predict.folder import annotate_folder
    from fedmedjax.predict.trained import FLAGS, read_trained
    from fedmedjax.runtime.progress import Reporter
    set_up()
    trained = read_trained(
      Path(values.adapter), {flag: values[flag].value for flag in FLAGS}, values.site, values.types)
    reporter = Reporter()
    annotate_folder(
      trained, Path(values.input), Path(values.output), values.format, reporter,
      values.text_column, values.id_column)
    reporter.repeat_warnings()

  return guarded(body)


if __name__ == '__main__':
  sys.exit(main())

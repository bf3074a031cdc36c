"""Writes a base model with an adapter merged in, as a folder that transformers loads.

    python scripts/merge.py --base=FOLDER_OR_GGUF_OR_HUB_ID --adapter=runs/a/adapter --output=merged

The weights are written as safetensors in --dtype, in files of at most 4 GB.
"""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
from absl import flags

from fedmedjax.model.dtypes import DTYPES
from fedmedjax.model.files.convert import HUGGING_FACE, Placement, tensor_names
from fedmedjax.model.files.folder import read_settings
from fedmedjax.model.files.hf_config import language_settings, to_hugging_face
from fedmedjax.model.files.load import load_model, model_path, resolve
from fedmedjax.model.files.peft import load_peft, merged_kernel
from fedmedjax.runtime.cli import guarded, read_flags
from fedmedjax.types import InputError

SHARD_BYTES = 4_000_000_000


def merge(base: str, adapter: Path, output: Path, dtype: str) -> None:
  """Loads in `dtype`, merges in float32, writes; InputError for bad input before it writes."""
  if dtype not in DTYPES:
    raise InputError(f'--dtype={dtype}: one of {", ".join(DTYPES)} is allowed')
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise InputError(f'--output={output}: a folder that is empty or not yet there is allowed')
  folder = resolve(model_path(base))
  model = load_model(folder, Placement(DTYPES[dtype]))
  if folder.is_dir():
    # The head may have values of its own although the file says that it is tied.
    settings = language_settings(read_settings(folder)) | {
      'tie_word_embeddings': model.config.tie_word_embeddings}
  else:
    tokens = {f'{kind}_token_id': getattr(model.tokenizer, f'{kind}_token_id')
              for kind in ('bos', 'eos', 'pad')}
    settings = to_hugging_face(model.config, str(folder)) | tokens
  factors, lora = load_peft(adapter, model.config)
  output.mkdir(parents=True, exist_ok=True)
  _write_tensors(model.config, model.params, factors, lora.scale, output)
  for key in ('torch_dtype', 'quantization_config'):
    settings.pop(key, None)
  (output / 'config.json').write_text(json.dumps(settings | {'dtype': dtype}, indent=2) + '\n')
  model.tokenizer.save_pretrained(output)
  if (folder / 'generation_config.json').is_file():
    shutil.copy(folder / 'generation_config.json', output)


def _write_tensors(config, params: dict, adapter: dict, scale: float, output: Path) -> None:
  """Beside the base, memory holds one file's tensors; a kernel is merged as it is written."""
  shards: list[dict[str, np.ndarray]] = [{}]
  held = 0
  weight_map, total = {}, 0

  def flush() -> None:
    safetensors.numpy.save_file(
      shards[-1], output / f'part-{len(shards):05d}.safetensors', metadata={'format': 'pt'})

  for name, path, layer in tensor_names(config, HUGGING_FACE):
    node = params if layer is None else params['layers']
    for key in path:
      node = node[key]
    values = node if layer is None else node[layer]
    if path[-1] == 'kernel':
      values = merged_kernel(values, adapter['layers'].get(path[0]), layer, scale).T
    values = np.ascontiguousarray(np.asarray(values))
    if shards[-1] and held + values.nbytes > SHARD_BYTES:
      flush()
      shards[-1] = {}
      shards.append({})
      held = 0
    shards[-1][name] = values
    weight_map[name], held, total = len(shards), held + values.nbytes, total + values.nbytes
  flush()
  if len(shards) == 1:
    (output / 'part-00001.safetensors').replace(output / 'model.safetensors')
    return
  names = {}
  for number in range(1, len(shards) + 1):
    names[number] = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
    (output / f'part-{number:05d}.safetensors').replace(output / names[number])
  (output / 'model.safetensors.index.json').write_text(json.dumps({
    'metadata': {'total_size': total},
    'weight_map': {name: names[number] for name, number in weight_map.items()}}, indent=2) + '\n')


def define(values: flags.FlagValues) -> None:
  flags.DEFINE_string('base', '', "Base model; '' = SmolLM2.", flag_values=values)
  flags.DEFINE_string('adapter', None, 'Folder of the adapter.', flag_values=values)
  flags.DEFINE_string('output', None, 'Folder to write.', flag_values=values)
  flags.DEFINE_string('dtype', 'float32', 'float32 or bfloat16.', flag_values=values)


def main(argv: list[str]) -> int:
  def body():
    values = read_flags(argv, define, needed=('adapter', 'output'))
    jax.config.update('jax_platforms', 'cpu')
    merge(values.base, Path(values.adapter), Path(values.output), values.dtype)
    print(f'{values.output}: written')

  return guarded(body)


if __name__ == '__main__':
  sys.exit(main(sys.argv))

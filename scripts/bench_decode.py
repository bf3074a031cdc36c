"""Speed of greedy decoding beside transformers' generate, on real test sentences.

    python scripts/bench_decode.py --adapter=WORKDIR [--batch=16 --batches=1 --repeats=3]
      [--task=ner|re --site=maccrobat2020] [--guesses=3,0,5] [--out=FILE]
      [--model=PATH|llama31_8b --dtype=bfloat16] [--matmul=float32|bfloat16] [--dry_run]
      [--peers=transformers,transformers_merged,transformers_bfloat16,transformers_merged_bfloat16]

Sentences are drawn from the site's test notes; all decode the same ones, as many at once, with the
same limits and end token, and must write the same tokens: differences are shown, and end the script
with status 1 (where either is in bfloat16, in which two programs break ties differently, they are
counted as NAME_identical_texts_share). Ours gives rows whose output has ended to the next
sentences, and decodes with each number of guesses (fedmedjax/model/speculation.py); the first is
the one called 'ours'. The peer decodes one batch after the other, like lengths together, pads on
the left and keeps its cache, with the adapter beside the weights as PEFT trains it, or merged into
them, in --dtype or in bfloat16 (under autocast where the adapter, which PEFT holds in float32, is
beside). Without --adapter the untouched model answers, whose text is no answer and often runs to
its limit. --matmul=bfloat16 races ours once more with operands of frozen products rounded, as a run
with config.model.matmul='bfloat16' decodes, named ours_bfloat16.
--dry_run only lowers our largest program, for a --model of shapes.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from benchmarks import inputs, interleaved
from fedmedjax import tree
from fedmedjax.data.site import SiteData, TaskData
from fedmedjax.eval.generation import Generator, continuations, largest_call, most_new_tokens
from fedmedjax.experiment import matmul
from fedmedjax.experiment.build import load_data
from fedmedjax.experiment.lora import lora_config
from fedmedjax.model.batching import Continuation
from fedmedjax.model.decode import cached_attention
from fedmedjax.model.dtypes import DTYPES
from fedmedjax.model.files.peft import load_peft
from fedmedjax.model.llama import Llama
from fedmedjax.model.lora import LoraConfig, init_adapter
from fedmedjax.runtime.progress import Reporter
from fedmedjax.types import InputError

_NARROW = '_bfloat16'  # ends the name of a peer in that format
PEERS = ('transformers', 'transformers_merged', 'transformers_bfloat16',
         'transformers_merged_bfloat16')
_SHOWN = 5  # texts that differ


class Adapter(NamedTuple):
  """What decodes beside the base; the folder is None without one."""

  folder: Path | None
  values: dict
  lora: LoraConfig | None


def read_adapter(path: str | None, model: inputs.Model) -> Adapter:
  """An adapter's folder, or a run's workdir with one; '' = none."""
  if not path:
    print('no --adapter: what is decoded is the zero-shot text of the base model')
    return Adapter(None, {}, None)
  folder = Path(path)
  folder = folder if (folder / 'adapter_config.json').is_file() else folder / 'adapter'
  return Adapter(folder, *load_peft(folder, model.base.config))


def drawn(part: TaskData, count: int) -> TaskData:
  """So many of the test examples, longest first, as `continuations` orders them.

  Raises InputError when there are not so many.
  """
  if len(part.test_tokens) < count:
    raise InputError(
      f'--batch, --batches: {count} test examples are wanted, the site has '
      f'{len(part.test_tokens)}')
  chosen = np.random.default_rng(0).permutation(len(part.test_tokens))[:count]
  chosen = sorted(chosen, key=lambda i: -part.test_tokens[i].prompt_length)
  return part._replace(
    test=tuple(part.test[i] for i in chosen),
    test_tokens=tuple(part.test_tokens[i] for i in chosen))


def ours(
  model: inputs.Model, adapter: Adapter, part: TaskData, values: flags.FlagValues
) -> dict[str, Callable[[], list[Continuation]]]:
  """Decoding with each number of guesses, and in the other form with the first of them."""
  def run(form: inputs.Model, guesses: str) -> Callable[[], list[Continuation]]:
    return partial(
      continuations, _generator(form, adapter.lora, values, int(guesses)), adapter.values,
      form.base.params, part)

  out = {f'ours_guesses{guesses}' if place else 'ours': run(model, guesses)
         for place, guesses in enumerate(values.guesses)}
  if values.matmul == matmul.ROUNDED:
    out[f'ours{_NARROW}'] = run(inputs.rounded_model(model), values.guesses[0])
  return out


def _generator(
  model: inputs.Model, lora: LoraConfig | None, values: flags.FlagValues, guesses: int
) -> Generator:
  llama = Llama(
    model.base.config, cached_attention, lora_scale=lora.scale if lora else 1.0,
    dtype=DTYPES[values.dtype])
  return Generator(llama, model.base.tokenizer, values.batch, values.max_new_ratio, guesses)


def peers(
  model: inputs.Model, adapter: Adapter, part: TaskData, values: flags.FlagValues
) -> dict[str, Callable[[], list[np.ndarray]]]:
  """transformers' generate with the adapter beside and merged into the weights, in both formats."""
  if not values.peers:
    return {}
  from benchmarks import torch_peer

  def built(name: str):
    dtype = 'bfloat16' if name.endswith(_NARROW) else values.dtype
    merged = name.removesuffix(_NARROW) == 'transformers_merged'
    twin = torch_peer.twin(model, values.dtype if merged else dtype, torch_peer.device())
    if adapter.folder is None:
      return torch_peer.in_format(twin, dtype)
    tuned = torch_peer.adapted(twin, adapter.folder)
    # Added up before it is rounded.
    return torch_peer.in_format(tuned.merge_and_unload(), dtype) if merged else tuned

  prompts = [example.tokens[:example.prompt_length] for example in part.test_tokens]
  limits = [most_new_tokens(len(prompt), values.max_new_ratio) for prompt in prompts]

  def run(built) -> list[np.ndarray]:
    return [
      tokens for start in range(0, len(prompts), values.batch)
      for tokens in torch_peer.generate(
        built, part.instruction, prompts[start:start + values.batch],
        limits[start:start + values.batch], model.base.tokenizer.eos_token_id)]

  return {f'peer_{name}': partial(run, built(name)) for name in values.peers}


def _tokens(one: Continuation | np.ndarray) -> list[int]:
  return (one.tokens if isinstance(one, Continuation) else one).tolist()


def identical(results: dict[str, Sequence[Any]]) -> dict[str, float]:
  """Share of the texts that are ours, token for token, of every other entrant."""
  return {
    name: float(np.mean([
      _tokens(one) == _tokens(own) for one, own in zip(outputs, results['ours'], strict=True)]))
    for name, outputs in results.items() if name != 'ours'}


def check_texts(tokenizer: Any, dtype: str, results: dict[str, Sequence[Any]]) -> None:
  """Shows texts whose tokens differ from ours; raises RuntimeError where both are in float32."""
  wrong = [
    (name, index) for name, outputs in results.items() for index, one in enumerate(outputs)
    if _tokens(one) != _tokens(results['ours'][index])]
  for name, index in wrong[:_SHOWN]:
    for who in ('ours', name):
      print(f'{who}, example {index}: {tokenizer.decode(_tokens(results[who][index]))!r}')
  if not wrong:
    return
  exact = [one for one in wrong if dtype == 'float32' and not one[0].endswith(_NARROW)]
  name, index = (exact or wrong)[0]
  said = f'{len(exact or wrong)} texts differ from ours, first {name}, example {index}'
  if exact:
    raise RuntimeError(said)
  print(f'bfloat16: {said}')


def dry_run(
  model: inputs.Model, lora: LoraConfig, site: SiteData, values: flags.FlagValues
) -> dict[str, Any]:
  """Lowers the passes with most keys and values, for abstract weights and an adapter of a run's
  shape -> entries of the file."""
  adapter = jax.eval_shape(
    lambda: init_adapter(jax.random.key(0), model.base.config, lora))
  program = largest_call(
    _generator(model, lora, values, int(values.guesses[0])), model.base.params, adapter, (site,))
  program.function.lower(*program.arguments)
  found = {
    'base_bytes': tree.num_bytes(model.base.params),
    'ours_brought_bytes': program.brought, 'ours_working_bytes': program.working}
  print('dry run, lowered and not compiled: ' + ', '.join(
    f'{key} {value:,}' for key, value in found.items()))
  return {'dry_run': True, 'examples': len(site.tasks[0].test_tokens)} | found


def bench(values: flags.FlagValues) -> dict[str, Any]:
  """What --out holds, but for the machine."""
  model = inputs.load(values.model, values.dtype, 'none', values.tokenizer, values.dry_run)
  adapter = None if values.dry_run else read_adapter(values.adapter, model)
  config = inputs.configure(
    values.site, values.task, batch_size=values.batch, data__max_length=values.max_length)
  data = load_data(config, Reporter(), model.base)
  part = drawn(data.sites[0].tasks[0], values.batch * values.batches)
  if adapter is None:
    return dry_run(model, lora_config(config), data.sites[0]._replace(tasks=(part,)), values)
  own = ours(model, adapter, part, values)
  timings = interleaved.measure(
    own | peers(model, adapter, part, values), values.repeats,
    partial(check_texts, model.base.tokenizer, values.dtype))
  examples = len(part.test_tokens)
  new = sum(len(one.tokens) for one in timings['ours'].result)
  quantities = {
    'examples_per_second': lambda seconds: examples / seconds,
    'new_tokens_per_second': lambda seconds: new / seconds}
  interleaved.show(
    f'{values.task}, {values.site}: {examples} sentences, {values.batch} at once, '
    f'{model.base.name}, {values.dtype}', timings, quantities)
  accepted = {
    name: new / max(1, sum(one.passes for one in timings[name].result)) for name in own}
  for name, tokens in accepted.items():
    print(f'{name.replace("_", " ")}: {tokens:.2f} tokens a pass')
  return interleaved.found(timings, quantities) | {
    'examples': examples, 'new_tokens': new, 'adapter': str(adapter.folder or ''),
    **{f'{name}_identical_texts_share': share for name, share in identical(
      {name: timing.result for name, timing in timings.items()}).items()},
    **{f'{name}_tokens_per_pass': tokens for name, tokens in accepted.items()}}


def define(values: flags.FlagValues) -> None:
  inputs.define_flags(values, batch=16)
  interleaved.define_flags(values, repeats=3)
  flags.DEFINE_string(
    'adapter', None, "A run's workdir or a PEFT folder; without one the base model answers.",
    flag_values=values)
  flags.DEFINE_integer(
    'batches', 1, 'How many batches are decoded in a call.', lower_bound=1, flag_values=values)
  flags.DEFINE_float(
    'max_new_ratio', 2.5, 'As config.eval.max_new_ratio.', lower_bound=0.0, flag_values=values)
  flags.DEFINE_list(
    'guesses', ['3', '0', '5'], 'As config.eval.guesses, each of them in turn.', flag_values=values)
  flags.DEFINE_enum(
    'matmul', matmul.WIDE, matmul.FORMS, 'As config.model.matmul; float32 is raced in any case.',
    flag_values=values)
  flags.DEFINE_list(
    'peers', list(PEERS[:2]), f"Some of {', '.join(PEERS)}; '' = none.", flag_values=values)


def check_flags(values: flags.FlagValues) -> None:
  """Raises InputError for flags that do not go together, before anything is read."""
  interleaved.check_out(values.out)
  inputs.check_names('peers', values.peers, PEERS)
  matmul.check_matmul({matmul.KEY: values.matmul, 'model.dtype': values.dtype})
  if not values.guesses or len(set(values.guesses)) < len(values.guesses):
    raise InputError(f'--guesses={",".join(values.guesses)}: integers, each once, are allowed')
  for guesses in values.guesses:
    if not guesses.isdigit():
      raise InputError(f'--guesses={guesses}: integers >= 0 are allowed')


def main(argv: list[str]) -> int:
  return interleaved.run(argv, define, check_flags, bench)


if __name__ == '__main__':
  sys.exit(main(sys.argv))

"""Training speed beside a torch + PEFT loop, and beside ours without what makes it fast.

    python scripts/bench_train.py --task=ner|re [--batch=16 --steps=2 --repeats=5] [--out=FILE]
      [--site=maccrobat2020] [--model=PATH|llama31_8b] [--dtype=bfloat16 --remat=full]
      [--peers=peft_batch4,...] [--variants=one_shape,...] [--sites=1,3,8] [--dry_run]
      [--attention=plain|flash|cudnn] [--matmul=auto|float32|bfloat16]
      [--quantization=none|int8|nf4] [--chunk=1]

All train the same adapter on the same examples, in random order as a loader gives them: `steps`
optimiser steps of `batch` examples (AdamW, 2e-4, clipped at 1), packing or padding included. The
losses of the first steps must agree to 1e-3 (bfloat16: 1e-2). The peer is the reference's recipe:
micro-batches of 4 or 8 padded to their longest example, accumulated, with or without gradient
checkpointing.

    ours             the instruction once a step, examples packed into rows; as a run over all
                     examples plans them, in the least of a few shapes that holds a step's
    ours_one_shape   in the shape that holds any step
    ours_no_sharing  packed likewise, the instruction in front of every example
    ours_padded      one example a row behind its instruction, padded to the longest

On a CPU in float32 both forms of config.model.matmul are raced. 'ours' multiplies by frozen weights
as --matmul says, by default as a run would here, 'ours_float32' or 'ours_bfloat16' in the other
form; each peer runs in float32 (peer_peft_batch4_float32) and under autocast (.._bfloat16), whose
losses must agree to bfloat16's tolerance. The ceiling is that of the form of 'ours'.

--sites adds a round over so many sites, each with `steps` steps on its part of the sentences: one
compiled program, and (--noloop: without) a loop in Python over the sites. Beside its speed stand
bytes: as the memory planner estimates them, as the compiler counts them, and as the device saw them
at most once it had run, which tells of a round where none before it was larger.
--dry_run traces and lowers our programs for abstract shapes: nothing is allocated, compiled or
run. The bytes it tells are the memory planner's estimate.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from benchmarks import inputs, interleaved, site_rounds
from benchmarks.agreement import check_losses
from benchmarks.flop import FLOP_FORMULA, training_flop
from benchmarks.row_layouts import VARIANTS, fed_tokens
from benchmarks.site_work import Work, amounts, arguments, with_base, work
from fedmedjax import tree
from fedmedjax.data import schedule as schedules
from fedmedjax.experiment import matmul
from fedmedjax.experiment.build import load_data
from fedmedjax.experiment.lora import lora_config
from fedmedjax.model.files.peft import save_peft
from fedmedjax.model.kernels import ATTENTIONS
from fedmedjax.model.llama import REMAT
from fedmedjax.model.quant import QUANTIZATIONS
from fedmedjax.runtime.progress import Reporter
from fedmedjax.types import InputError

# Name -> size of a micro-batch, and whether activations are checkpointed.
PEERS = {
  f'peft_batch{size}{"_checkpointing" * again}': (size, again)
  for again in (False, True) for size in (4, 8)}


def settings(values: flags.FlagValues, sites: int = 1) -> ConfigDict:
  return inputs.configure(
    values.site, values.task, batch_size=values.batch, steps=values.steps, sites=sites,
    data__max_length=values.max_length, model__dtype=values.dtype, model__remat=values.remat,
    model__attention=values.attention, fed__chunk=values.chunk)


def ours(
  one: Work, layouts: dict[str, schedules.Layout]
) -> dict[str, Callable[[], np.ndarray]]:
  """Our training, by how examples are laid in rows: entrants that return the K losses."""
  def run(layout: schedules.Layout, train: Callable) -> np.ndarray:
    adapter, losses, _ = train(*arguments(
      one, schedules.round_arrays(one.schedule._replace(layout=layout), 0)))
    jax.block_until_ready(adapter)
    return np.asarray(losses)

  return {
    name: partial(run, layout, jax.jit(one.train(layout.shape_buckets)))
    for name, layout in layouts.items()}


def peers(
  models: dict[str, inputs.Model], one: Work, config: ConfigDict, names: Sequence[str]
) -> tuple[dict[str, Callable[[], np.ndarray]], dict[str, int]]:
  """PEFT's loop by each recipe -> (entrants, tokens that each of them feeds).

  `models` are those of `inputs.forms`: where there are two, each recipe runs in both.
  """
  if not names:
    return {}, {}
  from benchmarks import torch_peer
  part = one.schedule.sites[0].tasks[0]
  steps = [
    torch_peer.PeerStep(part.instruction, tuple(part.train[i] for i in step.members))
    for step in one.schedule.plan[0][0]]
  model = models[matmul.WIDE]
  twin = torch_peer.twin(model, config.model.dtype, torch_peer.device())
  with tempfile.TemporaryDirectory() as folder:
    save_peft(one.study.trainable.adapter, lora_config(config), Path(folder), model.base.name)
    tuned = torch_peer.adapted(twin, Path(folder))
  rewind = torch_peer.rewinder(tuned)

  def run(recipe: torch_peer.Recipe) -> np.ndarray:
    rewind()
    return torch_peer.train(tuned, steps, one.rates, recipe, config.optim.clip_norm)

  recipes = {
    f'peer_{name}_{form}': torch_peer.Recipe(*PEERS[name], autocast=form == matmul.ROUNDED)
    for name in names for form in matmul.FORMS} if len(models) > 1 else {
    f'peer_{name}': torch_peer.Recipe(*PEERS[name]) for name in names}
  return (
    {name: partial(run, recipe) for name, recipe in recipes.items()},
    {name: torch_peer.fed_tokens(steps, recipe) for name, recipe in recipes.items()})


def one_site(models: dict[str, inputs.Model], values: flags.FlagValues) -> dict[str, Any]:
  """The race on one site -> entries of the file; `models`: of `inputs.forms`."""
  config, (form, *others) = settings(values), models
  model = models[form]
  one = work(config, load_data(config, Reporter(), model.base))
  layouts = {'ours': one.schedule.layout} | {
    f'ours_{name}': VARIANTS[name](one.schedule) for name in values.variants}
  mine = ours(one, layouts)
  rounded = set(mine) if form == matmul.ROUNDED else set()
  for other in others:
    layouts[f'ours_{other}'] = one.schedule.layout
    mine |= ours(with_base(one, models[other].base.params), {f'ours_{other}': one.schedule.layout})
  theirs, fed = peers(models, one, config, values.peers)
  rounded |= {name for name in (*mine, *theirs) if name.endswith(f'_{matmul.ROUNDED}')}
  fed |= {name: fed_tokens(one.schedule, layout) for name, layout in layouts.items()}
  timings = interleaved.measure(
    mine | theirs, values.repeats,
    partial(check_losses, tolerance=interleaved.TOLERANCES[values.dtype], rounded=rounded))
  ceiling = interleaved.matmul_ceiling(
    matmul.ROUNDED if form == matmul.ROUNDED else values.dtype, with_torch=bool(theirs))
  examples, tokens, supervised = amounts(one)
  flop = training_flop(model.base.config, lora_config(config), tokens, supervised)
  best = ceiling['ceiling_flop_per_second']
  quantities = {
    'examples_per_second': lambda seconds: examples / seconds,
    'unique_tokens_per_second': lambda seconds: tokens / seconds,
    'model_flop_utilisation': lambda seconds: flop / seconds / best}
  interleaved.show(
    f'{values.task}, {values.site}: {values.steps} steps of {values.batch} examples, '
    f'{model.base.name}, {values.dtype}' + (f', ours: {form} products' if others else ''),
    timings, quantities)
  print(f'{FLOP_FORMULA}\nHere {flop:.4g} FLOP for {tokens} unique tokens, '
        f'{supervised} supervised; utilisation is of the ceiling, {best:.4g} FLOP a second.')
  losses = {name: timing.result for name, timing in timings.items()}
  # One against itself is no entrant.
  alone = {f'ratio_to_{form}': 1.0, f'ratio_to_{form}_range': [1.0, 1.0]} if others else {}
  return interleaved.found(timings, quantities) | ceiling | alone | {
    'matmul': form, 'examples': examples, 'unique_tokens': tokens,
    'supervised_tokens': supervised, 'flop': flop, 'flop_formula': FLOP_FORMULA,
    **{f'{name}_fed_tokens': count for name, count in fed.items()},
    **{f'{name}_losses_nats': found for name, found in losses.items()}}


def by_sites(models: dict[str, inputs.Model], values: flags.FlagValues) -> dict[str, Any]:
  """Rounds over each number of sites, all in turns -> entries with the suffix _N_sites.

  They are computed in the first of `models`, the form of 'ours'.
  """
  form, model = next(iter(models.items()))
  entrants, counts, anchor = {}, [int(count) for count in values.sites], None
  tolerance, rounds, flop = interleaved.TOLERANCES[
    matmul.ROUNDED if form == matmul.ROUNDED else values.dtype], {}, {}
  for count in counts:
    config = settings(values, count)
    one = site_rounds.federation(config, load_data(config, Reporter(), model.base))
    anchor, rounds[count] = one.study.trainable.adapter, site_rounds.compiled(one)
    _, tokens, supervised = amounts(one.study)
    flop[count] = training_flop(model.base.config, lora_config(config), tokens, supervised)
    entrants[f'ours_{count}'] = rounds[count].run
    if values.loop:
      entrants[f'ours_loop_{count}'] = site_rounds.python_loop(one, count)

  def of(count: int, results: dict[str, Any]) -> dict[str, Any]:
    return {name: results[f'{name}_{count}'] for name in ('ours', 'ours_loop')[:1 + values.loop]}

  def check(results: dict[str, Any]) -> None:
    for count in counts:
      site_rounds.check_losses(of(count, results), tolerance=tolerance)
      site_rounds.check_adapters(anchor, of(count, results), tolerance)

  timings, out = interleaved.measure(entrants, values.repeats, check), {}
  for count in counts:
    steps = count * values.steps
    quantities = {
      'seconds_per_site_step': lambda seconds, steps=steps: seconds / steps,
      'examples_per_second': lambda seconds, steps=steps: steps * values.batch / seconds,
      'model_flop_per_second': lambda seconds, flop=flop[count]: flop / seconds}
    interleaved.show(
      f'a round of {count} sites, {values.steps} steps each, {model.base.name}',
      of(count, timings), quantities)
    out |= interleaved.found(of(count, timings), quantities, f'_{count}_sites') | {
      f'{name}_{count}_sites': size for name, size in rounds[count].needs().items()}
  first = out[f'ours_seconds_per_site_step_{counts[0]}_sites']
  for count in counts[1:]:
    key = f'ours_site_step_cost_{count}_over_{counts[0]}_sites'
    out[key] = out[f'ours_seconds_per_site_step_{count}_sites'] / first
    print(f'a step of a site among {count} costs {out[key]:.3f} times one among {counts[0]}')
  return out


def dry_run(model: inputs.Model, values: flags.FlagValues) -> dict[str, Any]:
  """Lowers one site's program, and each round, for abstract weights -> entries of the file."""
  config = settings(values)
  one = work(config, load_data(config, Reporter(), model.base))
  jax.jit(one.train(one.schedule.layout.shape_buckets)).lower(
    *arguments(one, schedules.round_arrays(one.schedule, 0)))
  examples, tokens, supervised = amounts(one)
  found = {
    'dry_run': True, 'examples': examples, 'unique_tokens': tokens,
    'ours_fed_tokens': fed_tokens(one.schedule, one.schedule.layout),
    'flop': training_flop(model.base.config, lora_config(config), tokens, supervised),
    'base_bytes': tree.num_bytes(model.base.params),
    'adapter_bytes': tree.num_bytes(one.study.trainable.adapter)}
  print('dry run, lowered and not compiled: ' + ', '.join(
    f'{key} {value:,.0f}' for key, value in found.items() if key != 'dry_run'))
  for count in map(int, values.sites):
    config = settings(values, count)
    needs = site_rounds.dry_run(
      site_rounds.federation(config, load_data(config, Reporter(), model.base)))
    found[f'ours_estimated_bytes_{count}_sites'] = needs['ours_estimated_bytes']
  return found


def define(values: flags.FlagValues) -> None:
  inputs.define_flags(values, batch=16)
  interleaved.define_flags(values, repeats=5)
  flags.DEFINE_integer(
    'steps', 2, 'Optimiser steps of a call.', lower_bound=1, flag_values=values)
  flags.DEFINE_enum('remat', 'products', list(REMAT), 'As config.model.remat.', flag_values=values)
  flags.DEFINE_enum(
    'attention', 'plain', list(ATTENTIONS), 'As config.model.attention.', flag_values=values)
  flags.DEFINE_enum(
    'quantization', 'none', list(QUANTIZATIONS), 'As config.model.quantization; ours only.',
    flag_values=values)
  flags.DEFINE_enum(
    'matmul', matmul.AUTO, (matmul.AUTO, *matmul.FORMS),
    "As config.model.matmul, of 'ours'; on a CPU in float32 the other form is raced, too.",
    flag_values=values)
  flags.DEFINE_list('peers', list(PEERS), "Peers; '' = none.", flag_values=values)
  flags.DEFINE_list(
    'variants', list(VARIANTS), "Variants of ours; '' = none.", flag_values=values)
  flags.DEFINE_list('sites', [], 'Numbers of sites of a round.', flag_values=values)
  flags.DEFINE_bool(
    'loop', True, 'Race each round against the loop over its sites, which must learn the same.',
    flag_values=values)
  flags.DEFINE_integer(
    'chunk', 1, 'As config.fed.chunk: sites computed at once, 0 = all.', lower_bound=0,
    flag_values=values)


def check_flags(values: flags.FlagValues) -> None:
  """Raises InputError for flags that do not go together, before anything is read."""
  interleaved.check_out(values.out)
  inputs.check_names('peers', values.peers, PEERS)
  inputs.check_names('variants', values.variants, VARIANTS)
  matmul.check_matmul({matmul.KEY: values.matmul, 'model.dtype': values.dtype})
  if values.quantization != 'none' and values.peers:
    raise InputError(
      f'--quantization={values.quantization}: peers train weights as they are; add --peers=')
  for count in values.sites:
    if not (count.isdigit() and int(count)):
      raise InputError(f'--sites={count}: integers >= 1 are allowed')


def bench(values: flags.FlagValues) -> dict[str, Any]:
  """What --out holds, but for the machine."""
  model = inputs.load(
    values.model, values.dtype, values.quantization, values.tokenizer, values.dry_run)
  models = inputs.forms(model, values.matmul, values.dtype)
  if values.dry_run:
    return dry_run(next(iter(models.values())), values)
  found = one_site(models, values)
  if not values.sites:
    return found
  # Rounds of a large model compile for minutes: whoever stops them has the race.
  interleaved.write(values.out, found | {'unfinished': True}, len(os.sched_getaffinity(0)))
  return found | by_sites(models, values)


def main(argv: list[str]) -> int:
  return interleaved.run(argv, define, check_flags, bench)


if __name__ == '__main__':
  sys.exit(main(sys.argv))

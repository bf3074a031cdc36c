"""Ways to lay out LoRA's thin products beside the frozen ones: one layer, forward and backward.

    python scripts/bench_lora.py [--model=smollm2|llama31_8b --dtype=bfloat16] [--rank=16]
      [--tokens=640] [--sites=8] [--repeats=7] [--out=FILE.json]

All calculate x W + (x A) B for the seven projections of a layer, and the gradients to x, A and B;
they must agree to 1e-3 of their length (bfloat16: 3e-2). At one site

    ours         two thin products for every projection
    ours_joined  projections of one input share the first: x [A_q A_k A_v]
    ours_fused   one product: [x, x A] [W; B]
    ours_merged  the adapter added to the weights first: x (W + A B)

and over sites, each with its own tokens and adapter and all with the same W

    ours         jax.lax.map, one site after the other
    ours_vmapped jax.vmap: the sites' tokens in one frozen product, thin products batched
    ours_ragged  likewise, with jax.lax.ragged_dot over the sites' tokens for the thin ones
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks import inputs, interleaved
from fedmedjax.experiment.config import DTYPES
from fedmedjax.model.files.hf_config import config_from_hugging_face
from fedmedjax.model.files.load import load_model, model_path
from fedmedjax.model.llama import LlamaConfig

# Projections that read the same input.
GROUPS = (('q_proj', 'k_proj', 'v_proj'), ('o_proj',), ('gate_proj', 'up_proj'), ('down_proj',))
# Length of a difference, in lengths of what is compared.
_APART = {'float32': 1e-3, 'bfloat16': 3e-2}

Weights = dict[str, jax.Array]
# (x [T, D_in], W, A, B by projection, all of one input) -> outputs [T, D_out] by projection
Form = Callable[[jax.Array, Weights, Weights, Weights], Weights]


def separate(x: jax.Array, w: Weights, a: Weights, b: Weights) -> Weights:
  return {name: x @ w[name] + (x @ a[name]) @ b[name] for name in w}


def joined(x: jax.Array, w: Weights, a: Weights, b: Weights) -> Weights:
  thin = jnp.split(x @ jnp.concatenate([a[name] for name in w], axis=-1), len(w), axis=-1)
  return {name: x @ w[name] + part @ b[name] for name, part in zip(w, thin, strict=True)}


def fused(x: jax.Array, w: Weights, a: Weights, b: Weights) -> Weights:
  return {
    name: jnp.concatenate([x, x @ a[name]], axis=-1) @ jnp.concatenate([w[name], b[name]])
    for name in w}


def merged(x: jax.Array, w: Weights, a: Weights, b: Weights) -> Weights:
  return {name: x @ (w[name] + a[name] @ b[name]) for name in w}


def mapped(x: jax.Array, w: Weights, a: Weights, b: Weights) -> Weights:
  """Over sites: x [C, T, D_in], factors [C, ...]; and so below."""
  return jax.lax.map(lambda site: separate(site[0], w, *site[1:]), (x, a, b))


def vmapped(x: jax.Array, w: Weights, a: Weights, b: Weights) -> Weights:
  return jax.vmap(separate, in_axes=(0, None, 0, 0))(x, w, a, b)


def ragged(x: jax.Array, w: Weights, a: Weights, b: Weights) -> Weights:
  sites, length = x.shape[:2]
  flat, sizes = x.reshape(-1, x.shape[-1]), jnp.full(sites, length, jnp.int32)
  grouped = partial(jax.lax.ragged_dot, group_sizes=sizes)
  return {
    name: (flat @ w[name] + grouped(grouped(flat, a[name]), b[name])).reshape(sites, length, -1)
    for name in w}


ONE_SITE: dict[str, Form] = {
  'ours': separate, 'ours_joined': joined, 'ours_fused': fused, 'ours_merged': merged}
SITES: dict[str, Form] = {'ours': mapped, 'ours_vmapped': vmapped, 'ours_ragged': ragged}


def drawn(
  config: LlamaConfig, tokens: int, rank: int, sites: tuple[int, ...], dtype: str
) -> tuple[Any, Weights, Any]:
  """(x by group, A, B), W, and the cotangents of the outputs, all normal; `sites` leads."""
  keys = iter(jax.random.split(jax.random.key(0), 64))

  def draw(*shape: int, scale: float = 1.0) -> jax.Array:
    return (scale * jax.random.normal(next(keys), shape)).astype(dtype)

  shapes = {name: config.projection_shape(name) for group in GROUPS for name in group}
  x = [draw(*sites, tokens, shapes[group[0]][0]) for group in GROUPS]
  a = {name: draw(*sites, d_in, rank, scale=d_in**-0.5) for name, (d_in, _) in shapes.items()}
  b = {name: draw(*sites, rank, d_out, scale=rank**-0.5) for name, (_, d_out) in shapes.items()}
  w = {name: draw(d_in, d_out, scale=d_in**-0.5) for name, (d_in, d_out) in shapes.items()}
  towards = {name: draw(*sites, tokens, d_out) for name, (_, d_out) in shapes.items()}
  return (x, a, b), w, towards


def entrants(
  forms: dict[str, Form], trained: Any, frozen: Weights, towards: Weights
) -> dict[str, Callable[[], list[jax.Array]]]:
  """Compiled forward and backward passes by form."""
  def layer(form: Form, trained, frozen, towards):
    def outputs(trained):
      inputs, a, b = trained
      out = {}
      for group, x in zip(GROUPS, inputs, strict=True):
        out |= form(x, *({name: part[name] for name in group} for part in (frozen, a, b)))
      return out

    out, pull = jax.vjp(outputs, trained)
    return jax.tree.leaves((out, pull(towards)))

  return {
    name: partial(
      lambda run: jax.block_until_ready(run(trained, frozen, towards)), jax.jit(partial(
        layer, form)))
    for name, form in forms.items()}


def check(dtype: str, results: dict[str, list[jax.Array]]) -> None:
  """Raises RuntimeError when a form gives other outputs or gradients than ours."""
  for name, found in results.items():
    for one, own in zip(found, results['ours'], strict=True):
      one, own = one.astype(jnp.float32), own.astype(jnp.float32)
      apart = float(jnp.linalg.norm(one - own) / jnp.linalg.norm(own))
      # Said so that a NaN is no agreement.
      if not apart <= _APART[dtype]:
        raise RuntimeError(f'{name} and ours give different results: {apart:.2g} of their length')


def bench(values: flags.FlagValues) -> dict[str, Any]:
  """What --out holds, but for the machine."""
  config = load_model(model_path('')).config if values.model == 'smollm2' else (
    config_from_hugging_face(inputs.SHAPES[values.model], values.model))
  out = {'tokens': values.tokens, 'rank': values.rank}
  for forms, sites in ((ONE_SITE, ()), (SITES, (values.sites,))):
    timings = interleaved.measure(
      entrants(forms, *drawn(config, values.tokens, values.rank, sites, values.dtype)),
      values.repeats, partial(check, values.dtype))
    count = sites[0] if sites else 1
    quantities = {'milliseconds_per_site': lambda seconds, count=count: 1e3 * seconds / count}
    interleaved.show(
      f'LoRA products of a layer of {values.model}, rank {values.rank}, {count} site(s) of '
      f'{values.tokens} tokens, {values.dtype}', timings, quantities)
    out |= interleaved.found(timings, quantities, f'_{count}_sites')
  return out


def define(values: flags.FlagValues) -> None:
  interleaved.define_flags(values, repeats=7)
  flags.DEFINE_enum(
    'model', 'smollm2', ('smollm2', *inputs.SHAPES), 'Whose layer.', flag_values=values)
  flags.DEFINE_enum('dtype', 'float32', DTYPES, 'Number format.', flag_values=values)
  flags.DEFINE_integer('rank', 16, 'Of the adapters.', lower_bound=1, flag_values=values)
  flags.DEFINE_integer('tokens', 640, 'Of a site.', lower_bound=1, flag_values=values)
  flags.DEFINE_integer('sites', 8, 'Sites.', lower_bound=2, flag_values=values)


def main(argv: list[str]) -> int:
  return interleaved.run(
    argv, define, lambda values: interleaved.check_out(values.out), bench)


if __name__ == '__main__':
  sys.exit(main(sys.argv))

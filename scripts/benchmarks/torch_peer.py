"""transformers and PEFT beside ours: the same weights, adapter, examples and optimiser.

    twin = torch_peer.twin(model, 'float32', 'cpu')          # inputs.Model
    peer = torch_peer.adapted(twin, adapter_folder)          # of model/files/peft.py
    losses = torch_peer.train(peer, steps, rates, Recipe(micro_batch=8, checkpointing=False))

Needs the test extra. The loop is what a PEFT user writes: a micro-batch padded to its longest
example, logits of all places (transformers' own loss), gradients accumulated to a step.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import peft
import torch
import transformers

from benchmarks.inputs import Model
from fedmedjax.data.tokenize import TokenExample
from fedmedjax.model.files.convert import HUGGING_FACE, tensor_names

_IGNORED = -100  # label of what is not supervised, in transformers


class Recipe(NamedTuple):
  """How a step's examples are fed."""

  micro_batch: int
  checkpointing: bool   # of activations, a layer at a time
  autocast: bool = False  # products in bfloat16, of float32 weights


class PeerStep(NamedTuple):
  """The examples of one optimiser step, behind their instruction i32[P + 1]."""

  instruction: np.ndarray
  examples: tuple[TokenExample, ...]


def device() -> str:
  """The device that torch computes on here."""
  return 'cuda' if torch.cuda.is_available() else 'cpu'


def twin(model: Model, dtype: str, device: str) -> transformers.PreTrainedModel:
  """The same architecture in transformers, with a copy of our weights (not quantised ones)."""
  settings = {key: value for key, value in model.settings.items() if key != 'model_type'}
  config = transformers.AutoConfig.for_model(model.settings['model_type'], **settings)
  with torch.device(device):
    built = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
  theirs = dict(built.named_parameters())
  for name, path, layer in tensor_names(model.base.config, HUGGING_FACE):
    node = model.base.params if layer is None else model.base.params['layers']
    for key in path:
      node = node[key]
    values = torch.from_dlpack(node) if layer is None else torch.from_dlpack(node)[layer]
    theirs.pop(name).data.copy_(values.T if path[-1] == 'kernel' else values)
  if theirs:
    raise RuntimeError(f'transformers has weights that ours has not: {", ".join(theirs)}')
  return built.requires_grad_(False)


def in_format(model: torch.nn.Module, dtype: str) -> torch.nn.Module:
  """The same model, its weights rounded to `dtype`."""
  return model.to(getattr(torch, dtype))


def adapted(twin: transformers.PreTrainedModel, folder: Path) -> peft.PeftModel:
  """The twin with a LoRA adapter as `save_peft` wrote it, to be trained or decoded with."""
  with warnings.catch_warnings():
    # PEFT's own warnings about its dependencies.
    warnings.simplefilter('ignore')
    return peft.PeftModel.from_pretrained(twin, folder, is_trainable=True)


def padded(
  instruction: np.ndarray, examples: Sequence[TokenExample]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """A micro-batch -> (token ids, attention mask, labels), each i64[B, longest]."""
  # An example begins with the instruction's last token.
  whole = [np.concatenate([instruction, example.tokens[1:]]) for example in examples]
  shape = len(whole), max(map(len, whole))
  ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
  labels = np.full(shape, _IGNORED, np.int64)
  for row, (tokens, example) in enumerate(zip(whole, examples, strict=True)):
    ids[row, :len(tokens)], mask[row, :len(tokens)] = tokens, 1
    start = len(instruction) - 1 + example.prompt_length
    labels[row, start:len(tokens)] = tokens[start:]
  return ids, mask, labels


def micro_batches(step: PeerStep, recipe: Recipe) -> list[tuple[TokenExample, ...]]:
  size = recipe.micro_batch
  return [step.examples[i:i + size] for i in range(0, len(step.examples), size)]


def fed_tokens(steps: Sequence[PeerStep], recipe: Recipe) -> int:
  """Tokens that the model computes, padding included."""
  return sum(
    padded(step.instruction, examples)[0].size
    for step in steps for examples in micro_batches(step, recipe))


def train(
  model: peft.PeftModel, steps: Sequence[PeerStep], rates: Sequence[float], recipe: Recipe,
  clip_norm: float = 1.0,
) -> np.ndarray:
  """AdamW from the adapter as it is, a fresh optimiser; a step at each rate.

  In bfloat16, or with a recipe that says so, under autocast to bfloat16, as transformers' trainer
  runs it; the adapter is float32.

  Returns:
    f64[K]: mean nats per supervised token of each step.
  """
  place = next(model.parameters()).device
  # transformers renamed it in the course of version 5.
  kind = 'activation' if hasattr(model, 'activation_checkpointing_enable') else 'gradient'
  if recipe.checkpointing:
    getattr(model, f'{kind}_checkpointing_enable')({'use_reentrant': False})
  else:
    getattr(model, f'{kind}_checkpointing_disable')()
  model.train()
  weights = [weight for weight in model.parameters() if weight.requires_grad]
  optimizer = torch.optim.AdamW(weights, lr=rates[0], weight_decay=0.0)
  narrow = recipe.autocast or model.dtype == torch.bfloat16
  losses = []
  for step, rate in zip(steps, rates, strict=True):
    optimizer.param_groups[0]['lr'] = rate
    supervised = sum(len(example.tokens) - example.prompt_length for example in step.examples)
    loss = torch.zeros((), device=place)
    for examples in micro_batches(step, recipe):
      ids, mask, labels = (
        torch.from_numpy(x).to(place) for x in padded(step.instruction, examples))
      with torch.autocast(place.type, torch.bfloat16, enabled=narrow):
        part = model(
          input_ids=ids, attention_mask=mask, labels=labels, num_items_in_batch=supervised,
          use_cache=False).loss
      part.backward()
      loss += part.detach()
    torch.nn.utils.clip_grad_norm_(weights, clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    losses.append(loss)
  # Waits for the device, too.
  return torch.stack(losses).double().cpu().numpy()


def rewinder(model: peft.PeftModel) -> Callable[[], None]:
  """Call it to give the adapter the values back that it has now."""
  weights = [weight for weight in model.parameters() if weight.requires_grad]
  values = [weight.detach().clone() for weight in weights]

  def rewind() -> None:
    with torch.no_grad():
      for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)

  return rewind


def generate(
  model: torch.nn.Module, instruction: np.ndarray, prompts: Sequence[np.ndarray],
  limits: Sequence[int], end: int,
) -> list[np.ndarray]:
  """Greedy continuations of a batch by transformers: padded on the left, with its cache.

  Args:
    model: the twin, adapted or not.
    instruction: i32[P + 1].
    prompts: i32[n] each; the first token is the instruction's last.
    limits: most new tokens of each; the batch runs to the largest.
    end: the end token.

  Returns:
    i64[n] each: cut at its limit and before the end token.
  """
  place = next(model.parameters()).device
  mixed = len({weight.dtype for weight in model.parameters()}) > 1  # an adapter beside bfloat16
  whole = [np.concatenate([instruction, prompt[1:]]) for prompt in prompts]
  shape = len(whole), max(map(len, whole))
  ids, mask = np.full(shape, end, np.int64), np.zeros(shape, np.int64)
  for row, tokens in enumerate(whole):
    ids[row, shape[1] - len(tokens):], mask[row, shape[1] - len(tokens):] = tokens, 1
  model.eval()
  with torch.inference_mode(), torch.autocast(place.type, torch.bfloat16, enabled=mixed):
    out = model.generate(
      input_ids=torch.from_numpy(ids).to(place), attention_mask=torch.from_numpy(mask).to(place),
      generation_config=transformers.GenerationConfig(
        do_sample=False, num_beams=1, use_cache=True, max_new_tokens=max(limits),
        eos_token_id=end, pad_token_id=end))
  new = out[:, shape[1]:].cpu().numpy()
  return [
    row[:min(limit, *np.flatnonzero(row == end), len(row))]
    for row, limit in zip(new, limits, strict=True)]

"""A site as a client of Flower: the PEFT loop of site_rounds.py behind a message.

    write(folder, one, model)        # what a client reads: model, adapter, steps of every site
    ClientApp `app`                  # trains from the arrays it is sent

Needs the extra `bench`. Clients run in processes of their own, which find this module by
PYTHONPATH; one keeps its model, and does the sites that it is given.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
import transformers
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from benchmarks import torch_peer
from benchmarks.site_rounds import Federation, peer_steps
from fedmedjax.data.tokenize import TokenExample
from fedmedjax.experiment.lora import lora_config
from fedmedjax.model.files.peft import save_peft

_WORK = 'work.json'

app = ClientApp()


def write(folder: Path, one: Federation, twin: transformers.PreTrainedModel, name: str) -> None:
  """Writes what clients read; `name` is the base model's."""
  transformers.utils.logging.disable_progress_bar()
  twin.save_pretrained(folder / 'twin')
  save_peft(one.study.trainable.adapter, lora_config(one.config), folder / 'adapter', name)
  sites = []
  for place, weight in enumerate(one.turn.weights):
    steps, rates = peer_steps(one, place)
    sites.append({'examples': float(weight), 'rates': rates, 'steps': [
      {'instruction': step.instruction.tolist(),
       'examples': [[example.tokens.tolist(), example.prompt_length] for example in step.examples]}
      for step in steps]})
  (folder / _WORK).write_text(json.dumps({
    'batch': one.config.fed.batch_size, 'clip_norm': one.config.optim.clip_norm, 'sites': sites}))


@cache
def read(folder: str) -> tuple:
  """(PEFT model, what `write` wrote of the sites), once a process."""
  torch.set_num_threads(1)   # a process a core
  twin = transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / 'twin')
  model = torch_peer.adapted(
    twin.requires_grad_(False).to(torch_peer.device()), Path(folder) / 'adapter')
  return model, json.loads((Path(folder) / _WORK).read_text())


def trained(model) -> dict[str, torch.Tensor]:
  """The adapter's tensors by name: what travels."""
  return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def arrays(model) -> ArrayRecord:
  return ArrayRecord({name: weight.detach().cpu() for name, weight in trained(model).items()})


def examples(pairs: list) -> tuple[TokenExample, ...]:
  return tuple(TokenExample(np.asarray(tokens, np.int32), length) for tokens, length in pairs)


@app.train()
def train(message: Message, context: Context) -> Message:
  """One site's steps, from the adapter in the message."""
  model, work = read(str(message.content['config']['folder']))
  site = work['sites'][int(context.node_config['partition-id'])]
  received = message.content['arrays'].to_torch_state_dict()
  with torch.no_grad():
    for name, weight in trained(model).items():
      weight.copy_(received[name])
  steps = [torch_peer.PeerStep(
    np.asarray(step['instruction'], np.int32), examples(step['examples']))
    for step in site['steps']]
  losses = torch_peer.train(
    model, steps, site['rates'], torch_peer.Recipe(work['batch'], checkpointing=False),
    work['clip_norm'])
  return Message(RecordDict({
    'arrays': arrays(model),
    'metrics': MetricRecord({
      'loss': float(losses.mean()), 'num-examples': site['examples']})}), reply_to=message)


def start(folder: Path) -> tuple[ArrayRecord, ConfigRecord]:
  """What the server begins with and tells its clients."""
  model, _ = read(str(folder))
  return arrays(model), ConfigRecord({'folder': str(folder)})

"""Regime api:MODEL against a real OpenAI-compatible server: transformers' own, on loopback."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
import transformers

from fedmedjax.compare import __main__ as compare
from fedmedjax.compare import api_run
from fedmedjax.eval.prompt import messages
from fedmedjax.experiment.build import load_data
from fedmedjax.experiment.command_line import parse
from fedmedjax.model.files.load import model_path
from fedmedjax.runtime.progress import Reporter

SERVE = 'from transformers.cli.transformers import main; main()'
START = 180  # seconds a server may take to load its model


@contextmanager
def served(model: str):
  """`transformers serve` on a free port -> its address; ends with the test."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  process = subprocess.Popen(
    [sys.executable, '-c', SERVE, 'serve', model, '--host', '127.0.0.1', '--port', str(port),
     '--device', 'cpu'],
    env=os.environ | {'OMP_NUM_THREADS': '1'}, stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE, text=True)
  try:
    address = f'http://127.0.0.1:{port}'
    for _ in range(10 * START):
      if process.poll() is not None:
        raise RuntimeError(f'transformers serve ended: {process.stderr.read()[-2000:]}')
      try:
        with urllib.request.urlopen(f'{address}/health', timeout=5):
          break
      except (urllib.error.URLError, TimeoutError):
        time.sleep(0.1)
    yield f'{address}/v1'
  finally:
    process.kill()
    process.communicate()


def asked_tokens(flags, tokenizer) -> int:
  """Tokens of all different prompts, as the server's chat template lays them out, counted here."""
  config, *_ = parse(flags, compare.define)
  data = load_data(config, Reporter())
  dialogues = {
    json.dumps(messages(prompt, example)) for prompts in api_run.plan(config, data).values()
    for prompt in prompts.values() for example in prompt.part.test}
  return sum(
    len(tokenizer.apply_chat_template(
      json.loads(dialogue), add_generation_prompt=True, return_dict=True)['input_ids'])
    for dialogue in dialogues)


def run_against(model, tokenizer, workdir, monkeypatch, *more) -> dict:
  """The comparison's row of a served model; checks what any server must give."""
  flags = [
    'fedmedjax', '--config=configs/quickstart.py', f'--workdir={workdir}',
    '--config.data.sites=("synthetic_icu",)', '--config.data.external=()',
    '--config.eval.bootstrap_samples=20', f'--regimes=api:{model}', '--config.api.concurrency=2',
    *more]
  with served(model) as url:
    monkeypatch.setenv('OPENAI_BASE_URL', url)
    monkeypatch.setenv('OPENAI_API_KEY', 'none-needed')
    assert compare.main(flags) == 0
  (summary,) = json.loads((workdir / 'compare.json').read_text()).values()
  api = summary['api']
  assert api['failed'] == 0 and api['requests'] + api['cached'] == api['answers']
  assert api['input_tokens'] == asked_tokens(flags, tokenizer)
  # The server is gone; what it said is not.
  (workdir / api_run.folder_name(model) / 'summary.json').unlink()
  assert compare.main(flags) == 0
  return summary


@pytest.mark.slow
def test_a_random_model_of_transformers_serve(tiny_folder, tmp_path, monkeypatch):
  """Answers are noise; prompts, counts, bounds, records and the cache are not."""
  folder = tmp_path / 'tiny'
  shutil.copytree(tiny_folder, folder)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  tokenizer.chat_template = (
    '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}'
    '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}')
  tokenizer.save_pretrained(folder)
  summary = run_against(
    str(folder), tokenizer, tmp_path / 'run', monkeypatch, f'--config.model.path={folder}',
    '--config.eval.max_examples=3', '--config.api.shots=2', "--config.data.tasks=('ner', 're')",
    '--config.eval.max_new_ratio=0.01')
  answers = summary['api']['answers']
  # 3 sentences and their entities; at most 32 tokens and 1 % of the input's.
  assert answers > 3 and 0 < summary['api']['output_tokens'] <= 33 * answers
  assert set(summary['scores']['synthetic_icu']) == {'ner', 're'}


@pytest.mark.slow
def test_smollm2_served(tmp_path, monkeypatch):
  """The pretrained model answers in words, some of them those that it reads.

  transformers 5.23 serves no GGUF file whose metadata name no architecture, and saves no model
  that came from one; hence a folder with its weights.
  """
  path, folder, workdir = model_path(''), tmp_path / 'smollm2', tmp_path / 'run'
  loaded = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
  config = loaded.config.to_dict()
  config.pop('quantization_config', None)
  plain = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(config))
  plain.load_state_dict(loaded.state_dict())
  plain.save_pretrained(folder)
  tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
  tokenizer.save_pretrained(folder)
  model = str(folder)
  summary = run_against(
    model, tokenizer, workdir, monkeypatch, '--config.eval.max_examples=4',
    '--config.api.shots=3', '--config.eval.max_new_ratio=0.5')
  lines = workdir / api_run.folder_name(model) / 'predictions' / 'synthetic_icu.jsonl'
  records = [json.loads(line) for line in lines.read_text().splitlines()]
  assert len(records) == summary['api']['answers'] == 4
  words = set(records[0]['model_input'].lower().split())
  assert words & set(records[0]['generated'].lower().split())

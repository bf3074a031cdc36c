"""Runs a study: zero-shot scores, rounds with checkpoints, final scores, files."""

import resource
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from fedmedjax import tree, writer
from fedmedjax.checkpoint import checkpoints, latest_round, restore, save
from fedmedjax.config import leaves
from fedmedjax.data import schedule as schedules
from fedmedjax.data.schedule import SiteData
from fedmedjax.eval import evaluate
from fedmedjax.experiment import Data, Study, load_data, options, prepare
from fedmedjax.fed.round import site_adapter
from fedmedjax.fed.sharing import shared_part, shares_all
from fedmedjax.fed.types import FedState, LocalData, RoundMetrics
from fedmedjax.model.lora import LoraConfig, save_peft
from fedmedjax.progress import Reporter
from fedmedjax.report import show, site_table
from fedmedjax.types import InputError

# The server's step may differ from the aggregate by rounding only (METHOD section 8).
_STEP_TOLERANCE = 1e-4
_compile_seconds = [0.0]


def _count_compilation(event: str, seconds: float, **_) -> None:
  if event == '/jax/core/compile/backend_compile_duration':
    _compile_seconds[0] += seconds


jax.monitoring.register_event_duration_secs_listener(_count_compilation)


class StepDisplay:
  """The host end of a round's progress: called by the compiled program after every step."""

  def __init__(self):
    self.names: tuple[str, ...] = ()
    self.advance: Callable = lambda count, note: None

  def __call__(self, site, step, loss, active) -> None:
    if active:
      self.advance(1, f'{self.names[int(site)]} loss {float(loss):.3f}')


def run(
  config: ConfigDict, workdir: Path, reporter: Reporter, data: Data | None = None
) -> dict:
  """Runs or resumes the study in `workdir` and returns its summary (see `_summary`).

  A finished run is only shown again. `data` may be given to share it between runs.

  Raises:
    InputError: bad configuration, data, model or workdir, before anything is compiled or saved.
    RuntimeError: training diverged or did not move; finished rounds stay on disk.
  """
  started, compiled = time.monotonic(), _compile_seconds[0]
  settings, rounds = writer.plain(leaves(config.to_dict())), options(config).rounds
  finished = writer.check_workdir(workdir, settings)
  held = latest_round(workdir / 'checkpoints')
  if held > rounds:
    raise InputError(
      f'--workdir={workdir}: holds {held} rounds, config.fed.rounds={rounds}; ask for as many '
      'or more')
  if finished and finished['rounds'] == rounds:
    reporter.say(f'{workdir}: finished, nothing to do')
    show(finished, reporter)
    return finished
  with reporter.live():
    data = data or load_data(config, reporter)
    display = StepDisplay()
    study = prepare(config, data, display)
    writer.claim(workdir, settings)
    # A finished run that goes on has no summary until it has finished again.
    (workdir / 'summary.json').unlink(missing_ok=True)
    reporter.say(site_table(data.sites, data.external))
    zero_shot = None
    if study.options.zero_shot and rounds:
      zero_shot = _score_all(study, None, workdir / 'predictions' / 'zero_shot', reporter)
    state, lines, earlier = None, [], 0.0
    if rounds:
      state, lines, earlier = _train(study, workdir, reporter, display)
      for folder, adapter in _adapters(study, state, workdir / 'adapter').items():
        save_peft(adapter, _lora_of(study, adapter), folder, data.base.name)
    scores = _score_all(study, state, workdir / 'predictions', reporter)
  summary = _summary(study, lines, scores, zero_shot) | {
    'wall_seconds': earlier + time.monotonic() - started,
    'compile_seconds': _compile_seconds[0] - compiled,
    'peak_memory_bytes': _peak_memory(),
  }
  writer.write_json(workdir / 'summary.json', summary)
  show(summary, reporter)
  return summary


def _train(study: Study, workdir: Path, reporter: Reporter, display: StepDisplay):
  """All rounds not yet done -> (state, metrics lines, seconds that earlier runs trained)."""
  schedule, path = study.schedule, workdir / 'metrics.jsonl'
  names = participant_names(study)
  display.names = names
  cohort = jnp.arange(len(names))
  key = jax.random.key(study.options.seed)
  with checkpoints(workdir / 'checkpoints', study.options.keep) as checkpointer:
    fresh = study.algorithm.init(study.adapter)
    state = restore(checkpointer, fresh) or fresh
    done = int(state.round)
    lines = [line for line in writer.read_lines(path) if line['round'] <= done]
    writer.write_lines(path, lines)
    earlier = sum(line['seconds'] for line in lines)
    if done:
      reporter.say(f'resuming after round {done}')
    compiled = None
    for number in range(done, study.options.rounds):
      batches, step_mask = schedules.round_arrays(schedule, number)
      data = LocalData(batches, step_mask, schedule.weights)
      inputs = (
        state, study.data.base.params, data, cohort, study.validation,
        jax.random.fold_in(key, number))
      if compiled is None:
        with reporter.task('compiling the round') as advance:
          compiled = study.algorithm.round.lower(*inputs).compile()
          advance()
      begun = time.monotonic()
      label = f'round {number + 1}/{study.options.rounds}'
      with reporter.task(label, int(step_mask.sum())) as advance:
        display.advance = advance
        state, metrics = compiled(*inputs)
        metrics = jax.device_get(metrics)
        jax.effects_barrier()
      line = _metrics_line(study, number, metrics, time.monotonic() - begun)
      for warning in _check_round(study, line, metrics):
        reporter.say(f'warning: {warning}')
      # The line first: on resuming, a line without its checkpoint is dropped and made again.
      writer.append_line(path, line)
      save(checkpointer, state)
      lines.append(line)
      reporter.say(_round_sentence(line, study.options.rounds))
  return state, lines, earlier


def participant_names(study: Study) -> tuple[str, ...]:
  """The sites that train, or the one place where their notes are pooled."""
  return ('pooled',) if study.options.pooled else tuple(s.name for s in study.data.sites)


def _metrics_line(study: Study, number: int, metrics: RoundMetrics, seconds: float) -> dict:
  """One round for metrics.jsonl; site axes in the order of `sites`, NaN as null."""
  examples, tokens = schedules.round_work(study.schedule, number)
  names = participant_names(study)
  sent = 0 if study.options.pooled else tree.num_bytes(
    shared_part(study.sharing, study.adapter, number)) * len(names)
  steps = [len(one) for one in study.schedule.plan[number]]
  losses = [loss[:count] for loss, count in zip(metrics.train_loss, steps, strict=True)]
  return writer.plain({
    'round': number + 1, 'sites': names,
    'train_loss': [np.mean(loss) for loss in losses], 'last_loss': [loss[-1] for loss in losses],
    'validation_loss': metrics.validation_loss, 'weights': metrics.weights,
    'update_norm': metrics.update_norm, 'cosine': metrics.cosine,
    'step_norm': metrics.step_norm, 'step_cosine': metrics.step_cosine,
    'product_gap': metrics.product_gap,
    'local_steps': sum(steps),
    # Steps taken over steps laid out: sites computed together wait for the longest.
    'useful_step_share': sum(steps) / (len(steps) * max(steps)),
    'examples': examples, 'tokens': tokens, 'seconds': seconds,
    'bytes_up': sent, 'bytes_down': sent + _folded_bytes(study) * len(names),
  })


def _check_round(study: Study, line: dict, metrics: RoundMetrics) -> list[str]:
  """METHOD section 8: what was learnt is finite and sent, and the server moved by just that.

  Returns warnings: sites whose numbers are not finite and that therefore weighed nothing.

  Raises:
    RuntimeError: no site can be used, a broken one had weight, or nothing moved.
  """
  number, shared = line['round'], bool(
    shared_part(study.sharing, study.adapter, line['round'] - 1))
  broken = ~np.isfinite(metrics.local_norm) | [
    not np.isfinite(loss[:len(steps)]).all()
    for loss, steps in zip(metrics.train_loss, study.schedule.plan[number - 1], strict=True)]
  unheard = shared & (metrics.weights == 0)
  for name, bad in zip(line['sites'], broken & ~unheard, strict=True):
    if bad:
      raise RuntimeError(
        f'round {number}: the loss or update of site {name} is not finite; rounds before it are '
        'kept. Lower config.optim.learning_rate')
  if shared and unheard.all():
    raise RuntimeError(
      f'round {number}: no site has a finite validation loss; rounds before it are kept. Lower '
      'config.optim.learning_rate')
  if not (metrics.local_norm[~broken] > 0).all() or (shared and not metrics.step_norm > 0):
    raise RuntimeError(f'round {number}: an update is zero, nothing was learnt')
  gap = metrics.expected_gap / max(metrics.step_norm, 1e-30)
  if study.options.adds_aggregate and not gap <= _STEP_TOLERANCE:
    raise RuntimeError(f'round {number}: the server moved by something else than the aggregate')
  # From rest every server optimiser goes the aggregate's way; later its memory may oppose it.
  if shared and number == 1 and not metrics.step_cosine > 0:
    raise RuntimeError('round 1: the server moved away from the aggregate')
  return [
    f'round {number}: site {name} weighs 0, its validation loss is not finite'
    for name, silent in zip(line['sites'], unheard, strict=True) if silent]


def _round_sentence(line: dict, rounds: int) -> str:
  parts = [
    f'{name} {loss:.3f} (weight {weight:.2f})'
    for name, loss, weight in zip(line['sites'], line['train_loss'], line['weights'], strict=True)]
  return f'round {line["round"]}/{rounds}: mean training loss ' + ', '.join(parts)


def _adapters(study: Study, state: FedState | None, folder: Path) -> dict[Path, dict]:
  """Where each adapter of the run goes: one for all, or one a site when leaves are its own."""
  if state is None:
    return {folder: {}}
  if shares_all(study.sharing, study.adapter):
    return {folder: site_adapter(state, study.sharing, 0)}
  return {
    folder / name: site_adapter(state, study.sharing, index)
    for index, name in enumerate(participant_names(study))}


def _lora_of(study: Study, adapter: dict) -> LoraConfig:
  """The rank of an adapter that is wider by what was folded into the base; the scale stays."""
  width = next(iter(adapter['layers'].values()))['a'].shape[-1]
  if width == study.lora.rank:
    return study.lora
  return study.lora._replace(rank=width, alpha=study.lora.scale * width)


def _folded_bytes(study: Study) -> int:
  """Bytes of the columns that every site is sent after a round, beside the adapter."""
  state = jax.eval_shape(study.algorithm.init, study.adapter)
  return tree.num_bytes(state.folded) // study.options.rounds


def _score_all(
  study: Study, state: FedState | None, folder: Path, reporter: Reporter
) -> dict[str, evaluate.SiteScores]:
  """Decodes and scores every site's test set; state None = the base model alone.

  A site is answered by the shared adapter or its own. An external cohort has none of its own:
  when leaves are sites' own, every site's adapter answers and the counts add up. Zero-shot answers
  found on disk are used again, since no round changes them.
  """
  adapters = _adapters(study, state, Path())
  scores = {}
  for site in (*study.data.sites, *study.data.external):
    path = folder / f'{site.name}.jsonl'
    records = writer.read_lines(path) if state is None else []
    if len(records) != len(site.test):
      records = []
      answering = [adapters[Path(site.name)]] if Path(site.name) in adapters else (
        list(adapters.values()))
      what = 'zero-shot' if state is None else 'decoding'
      with reporter.task(f'{what} {site.name}', len(site.test) * len(answering)) as advance:
        for adapter in answering:
          records += _answer(study, adapter, site, advance)
      writer.write_lines(path, records)
    scores[site.name] = evaluate.score(
      site, records, study.options.seed, study.options.bootstrap_samples)
  return scores


def _answer(study: Study, adapter: dict, site: SiteData, advance) -> list[dict]:
  outputs = evaluate.generate(
    study.generator, adapter, study.data.base.params, site, advance)
  return evaluate.predictions(site, outputs)


def _summary(study: Study, lines: list[dict], scores: dict, zero_shot: dict | None) -> dict:
  """summary.json without what only the whole run knows (times, memory)."""
  def shown(scores):
    return {name: {'ner': site.scores} for name, site in scores.items()}

  def total(key):
    return sum(line[key] for line in lines)

  seconds = total('seconds')
  base_bytes = tree.num_bytes(study.data.base.params)
  # What the same exchanges would have cost with the whole model, both ways.
  exchanges = sum(2 * len(line['sites']) for line in lines if line['bytes_up'])
  return writer.plain({
    'preset': study.options.preset, 'seed': study.options.seed, 'rounds': len(lines),
    'sites': [site.name for site in study.data.sites],
    'external': [site.name for site in study.data.external],
    'train_examples': [len(site.train) for site in study.data.sites],
    'scores': shown(scores),
    'bytes_up': total('bytes_up'), 'bytes_down': total('bytes_down'),
    'bytes_full_model': base_bytes * exchanges,
    'adapter_parameters': tree.size(study.adapter),
    'base_parameters': tree.size(study.data.base.params),
    'local_steps': total('local_steps'),
    'tokens_per_second': total('tokens') / seconds if seconds else 0.0,
    'examples_per_second': total('examples') / seconds if seconds else 0.0,
    'copy_rate': np.mean([site.copy_rate for site in scores.values()]),
    'parse_failure_rate': np.mean([site.parse_failure_rate for site in scores.values()]),
    'site_weights': [line['weights'] for line in lines],
    'zero_shot': zero_shot and {'scores': shown(zero_shot)},
    'instructions': {
      site.name: study.data.base.tokenizer.decode(site.instruction)
      for site in (*study.data.sites, *study.data.external)},
  })


def _peak_memory() -> int:
  """Bytes: of the accelerator when it counts them, else of this process."""
  stats = jax.local_devices()[0].memory_stats() or {}
  # ru_maxrss is in KiB on Linux.
  return stats.get('peak_bytes_in_use') or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

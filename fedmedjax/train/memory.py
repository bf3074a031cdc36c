"""The memory plan of a run: the fastest execution whose compiled round fits into memory.

Executions (`experiment/execution.py`) differ in how many sites are computed at once and in what is
recomputed for the gradient. They are tried from the fastest on, which on accelerators
`train/roofline.py` tells: fewer sites at once read the base more often, and keeping less takes more
products. XLA reports the memory of a compiled round. An execution that cannot fit, by
`train/estimates.py`, is skipped without compilation. The program that was compiled for the plan is
the one that then runs.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax

from fedmedjax import tree
from fedmedjax.experiment.execution import Execution, alternatives, smaller
from fedmedjax.experiment.types import Study
from fedmedjax.fed.round import site_adapter
from fedmedjax.runtime import device
from fedmedjax.runtime.progress import Reporter
from fedmedjax.train import roofline
from fedmedjax.train.estimates import estimate
from fedmedjax.types import InputError

# Share of the limit that a plan may use. The rest is for memory that XLA does not report:
# fragmentation, scratch space of kernels, copies on their way to disk.
SHARE = 0.9
# Messages of a GPU's libraries when memory runs out, beside XLA's own RESOURCE_EXHAUSTED.
_LIBRARIES_SAY = ('CUDA_ERROR_OUT_OF_MEMORY', 'CUBLAS_STATUS_ALLOC_FAILED',
                  'CUDNN_STATUS_ALLOC_FAILED', 'CUSOLVER_STATUS_ALLOC_FAILED')


class Plan(NamedTuple):
  """An execution and its compiled round; numbers are bytes on the first device."""

  execution: Execution
  compiled: Callable         # the compiled round
  training: dict[str, int]   # bytes while a round runs, by what they are used for
  decoding: int              # bytes while the largest batch is decoded
  before: int                # the most bytes that were in use before the plan was made
  limit: int                 # bytes of the device, of which the SHARE may be used

  @property
  def peak(self) -> int:
    """The largest number of bytes that are in use at any time of the run, as predicted."""
    return max(sum(self.training.values()), self.decoding, self.before)

  def __str__(self) -> str:
    return (
      f'memory: {_gib(self.peak)} of {_gib(self.limit)} predicted at most, with '
      f'{self.execution}')


def plan(study: Study, inputs: tuple, reporter: Reporter, lines: Sequence[dict] = ()) -> Plan:
  """The fastest execution that fits, compiled.

  Args:
    study: its executions are tried, in the order of `roofline.by_time`.
    inputs: arguments of its round.
    reporter: shows compilations.
    lines: lines of the finished rounds. A run that resumes begins with the execution of the last.

  Raises:
    InputError: no execution fits, or decoding does not.
  """
  most = study.processes.most
  limit = study.options.memory or -int(most('memory', -device.limit()))
  in_use = int(most('memory in use', device.held()))
  guess, factor = estimate(study, inputs), 1.0
  order = _remaining(
    roofline.by_time(study, inputs, study.executions, guess, _peak()), lines)
  for execution in order:
    if execution != order[-1] and in_use + factor * guess(execution) > SHARE * limit:
      continue
    compiled = compile_round(study, execution, inputs, reporter)
    training = _uses(compiled, inputs) if compiled else {}
    # What one process has no room for, none computes.
    compiled = None if most('compiled', not compiled) else compiled
    needed = most('memory needed', sum(training.values()) or in_use + guess(execution))
    if compiled and needed <= SHARE * limit:
      before = int(most('memory before', device.peak()))
      decoding = int(most('decoding', _decoding(study, inputs, needed, limit)))
      return Plan(execution, compiled, training, decoding, before, limit)
    # The ratio by which the compiled round exceeds its estimate is expected of the others too.
    factor = max(factor, (needed - in_use) / guess(execution))
  smallest = smaller(order[-1], study.communication.sampler.size, study.groups) is None
  offered = fitting_micro_batch(study, inputs, reporter, limit)
  raise InputError(
    f'config.fed.batch_size={study.schedule.batch_size}: a round needs {_gib(needed)} with '
    f'{order[-1]}, of {_gib(limit)} {SHARE:.0%} may be used; '
    + (f'it fits with fed.micro_batch={offered}; otherwise ' if offered else '')
    + ('' if smallest else "set config.fed.chunk=-1 and config.model.remat='auto', ")
    + 'lower it, config.data.max_length or config.lora.rank, take a narrower '
    'config.model.quantization, or raise config.fed.memory_gib')


def _peak() -> roofline.Peak | None:
  first = jax.local_devices()[0]
  return roofline.peak_of(first.platform, first.device_kind)


def fitting_micro_batch(
  study: Study, inputs: tuple, reporter: Reporter, limit: int
) -> int | None:
  """The largest config.fed.micro_batch with which a round fits; None when none does.

  Halves of what is computed at once now are tried, with the smallest execution. Units of privacy
  have gradients one by one anyway.

  Args:
    study: of which no execution fits.
    inputs: arguments of its round, arrays or their shapes.
    reporter: shows compilations.
    limit: bytes of the device.
  """
  if study.schedule.units:
    return None
  size, room = -(-study.schedule.batch_size // study.schedule.layout.groups), SHARE * limit
  most = study.processes.most
  while size > 1 and most('memory in use', device.held()) < room:
    size = -(-size // 2)
    other = study.with_micro_batch(size)
    if other.schedule.layout.groups == study.schedule.layout.groups:
      continue  # no step has as many examples as the batch might
    execution, given = other.executions[-1], _inputs_of(other, inputs)
    # Estimates may be too large: of single examples the compiler is asked whatever they say.
    if size > 1 and most('memory in use', device.held()) + estimate(
        other, given)(execution) > room:
      continue
    compiled = compile_round(other, execution, given, reporter)
    used = sum(_uses(compiled, given).values()) if compiled else math.inf
    if study.processes.most('memory needed', min(used, 2 * limit)) <= room:
      return size
  return None


def _inputs_of(study: Study, inputs: tuple) -> tuple:
  """`inputs` of a round, with the shapes of the examples of `study` in place of theirs."""
  state, base, data, cohort, _, key = inputs
  leading = jax.tree.leaves(data.batches)[0].shape[:2]
  batches = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((*leading, *x.shape), x.dtype),
    study.schedule.layout.blank)
  return state, base, data._replace(batches=batches), cohort, study.validation, key


def _remaining(
  order: tuple[Execution, ...], lines: Sequence[dict]
) -> tuple[Execution, ...]:
  """`order` from the last round's execution on, so that a resumed run rounds as before."""
  # The line of a round without participants has no execution; after a crash a line may be anything.
  last = next(
    (line for line in reversed(lines) if isinstance(line, dict) and 'remat' in line), {})
  last_execution = Execution(last.get('chunk'), last.get('remat'))
  return order[order.index(last_execution):] if last_execution in order else order


def reduced(study: Study, failed: Plan, inputs: tuple, reporter: Reporter) -> Plan:
  """The plan for a round that ran out of memory: the next smaller execution that compiles.

  Args:
    study: what is trained.
    failed: the plan with which memory ran out.
    inputs: arguments of the round.
    reporter: prints a warning for each execution that is tried.

  Raises:
    RuntimeError: there is no smaller execution.
  """
  execution, after = failed.execution, _smaller(study, inputs, failed.execution)
  while execution := after(execution):
    reporter.warn(
      f'memory ran out with {failed.execution}; the round is tried again with {execution}')
    compiled = compile_round(study, execution, inputs, reporter)
    if compiled:
      return failed._replace(
        execution=execution, compiled=compiled, training=_uses(compiled, inputs))
  raise RuntimeError(
    f'memory ran out with {failed.execution}, and nothing smaller is left; finished rounds are '
    'kept: go on with a smaller config.fed.micro_batch')


def _smaller(
  study: Study, inputs: tuple, failed: Execution
) -> Callable[[Execution], Execution | None]:
  """(one without memory) -> the next that is tried: the fastest of those that need a tenth less.

  Where none does, the smallest, if that needs any less; None otherwise.
  """
  sites, peak = study.communication.sampler.size, _peak()
  if peak is None:
    return partial(smaller, sites=sites, groups=study.groups)
  guess = estimate(study, inputs)
  order = roofline.by_time(
    study, inputs, alternatives(failed, sites, study.groups), guess, peak)

  def after(execution: Execution) -> Execution | None:
    room = guess(execution)
    less = [one for one in order if guess(one) < room]
    return next(
      (one for one in less if guess(one) <= 0.9 * room), min(less, key=guess, default=None))

  return after


def compile_round(
  study: Study, execution: Execution, inputs: tuple, reporter: Reporter
) -> Callable | None:
  """The compiled round; None when the compiler itself runs out of memory."""
  with reporter.task('compiling the round') as advance:
    lowered = study.algorithm_with(execution).round.lower(*inputs)
    try:
      compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      if not exhausted(error):
        raise
      compiled = None
    advance()
  return compiled


def exhausted(error: Exception) -> bool:
  """Whether an error of the runtime, or of a library that it calls, means that memory ran out."""
  return str(error).startswith('RESOURCE_EXHAUSTED') or any(
    words in str(error) for words in _LIBRARIES_SAY)


def _uses(compiled: Any, inputs: tuple) -> dict[str, int]:
  """{use: bytes} while the round runs; those of the round itself are the compiler's count."""
  state, base, *fed = inputs
  counted = compiled.memory_analysis()
  given = {
    'base model': _on_device(base), 'state of server and sites': _on_device(state)}
  return given | {
    'examples of the round and of validation': sum(
      _on_device(leaf) if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
      else tree.num_bytes(leaf) for leaf in jax.tree.leaves(fed)),
    "the round's own room (gradients, moments, activations)": temporaries(counted),
    'what it returns beside the state': (
      counted.output_size_in_bytes - counted.alias_size_in_bytes),
    'its program': counted.generated_code_size_in_bytes,
    'all else that is held (libraries, notes)': max(0, device.held() - sum(given.values()))}


def temporaries(counted: Any) -> int:
  """Bytes of a compiled program beside its arguments and results, by the compiler's count.

  They are what its `peak_memory_in_bytes` has beside these, where jax knows a peak: on a TPU the
  sum of all temporaries (`temp_size_in_bytes`) is more than is ever alive. A peak without even half
  of them does not count them at all, as on CPUs with jax 0.10.2; then the sum is taken.
  """
  every = counted.temp_size_in_bytes
  alive = getattr(counted, 'peak_memory_in_bytes', 0) - (
    counted.argument_size_in_bytes + counted.output_size_in_bytes - counted.alias_size_in_bytes)
  return alive if every / 2 <= alive < every else every


def _on_device(arrays: Any) -> int:
  """Bytes that a tree of jax arrays takes on the first device."""
  first = jax.local_devices()[0]
  return sum(
    shard.data.nbytes for leaf in jax.tree.leaves(arrays) for shard in leaf.addressable_shards
    if shard.device == first)


def _decoding(study: Study, inputs: tuple, training: int, limit: int) -> int:
  """Bytes while the largest batch is decoded, with the last round's state still in memory.

  Where decoding may need more than training, its program is compiled for the compiler's count. On
  one device a later call of this size reuses the compiled program; on a mesh it does not, since the
  arrays are placed differently.

  Raises:
    InputError: decoding does not fit.
  """
  adapter = jax.eval_shape(lambda state: site_adapter(state, study.sharing, 0), inputs[0])
  asked = [site for site in (*study.data.tested, *study.data.external, *study.watched)
           if study.data.reading.here(site)]
  if study.spread and not any(part.test_tokens for site in asked for part in site.tasks):
    return 0  # other processes answer
  program = study.trainable.largest_answer(adapter, asked)
  needed = device.held() + program.brought
  if needed + 2 * program.working <= training:
    return needed + program.working
  try:
    counted = program.function.lower(*program.arguments).compile().memory_analysis()
    needed += (
      temporaries(counted) + counted.output_size_in_bytes
      + counted.generated_code_size_in_bytes)
  except jax.errors.JaxRuntimeError as error:
    if not exhausted(error):
      raise
    needed = limit
  if needed > SHARE * limit:
    raise InputError(
      f'config.eval.batch_size: decoding needs {_gib(needed)}, of {_gib(limit)} {SHARE:.0%} may be '
      'used; lower it or config.eval.max_new_ratio, or raise config.fed.memory_gib')
  return needed


def _gib(count: float) -> str:
  return f'{count / 2**30:.2f} GiB'

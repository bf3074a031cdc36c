"""Shared types. Imports neither jax nor anything of this package.

Axis letters used in every docstring:
  S sites, C cohort (the sites of one round), K local steps (padded), R rows, N tokens in a row,
  P tokens of the shared instruction, M supervised targets of a row, V vocabulary, L layers,
  D width. `*p` stands for the shape of one adapter leaf.

Words: a **site** holds notes; the **cohort** is the sites of this round; the **anchor** is the
adapter a site started from; the **update** is local - anchor; the **adapter** is the LoRA tree;
the **base** is the frozen weights.
"""

from math import isnan, nan
from statistics import median
from typing import Any, NamedTuple

# Stands for the number of a site: the server, where it holds validation notes of its own.
SERVER = -1

class EntityType(NamedTuple):
  """A type of entities that a study looks for."""

  name: str
  definition: str
  example: str
  colour: str = ''  # '#rrggbb' on pages; '' = one is chosen


class RelationType(NamedTuple):
  """A type of modifiers: spans that are linked to a main entity of one of the types `of`."""

  name: str
  definition: str
  example: str
  of: tuple[str, ...]


class Wording(NamedTuple):
  """The prompt of one task in one style of answers, in a study's own words: see data/wording.py."""

  task: str
  style: str
  sentence: str  # the first one, which asks; '' = `before` and `after` are all of the prompt
  before: str    # the instruction, with placeholders
  after: str     # what ends the question


class Schema(NamedTuple):
  """The types that a study asks for; entities and relations stand in the order of prompts."""

  entities: tuple[EntityType, ...]
  relations: tuple[RelationType, ...] = ()
  source: str = ''  # the file, for messages; '' = the paper's
  text: str = ''    # of the file
  wording: tuple[Wording, ...] = ()  # prompts in place of the usual ones
  words: str = ''   # text of the file of these

  @property
  def types(self) -> tuple[str, ...]:
    """The names of the entity types."""
    return tuple(entity.name for entity in self.entities)

  @property
  def kinds(self) -> tuple[str, ...]:
    """The names of the relations, which are the types of modifiers."""
    return tuple(relation.name for relation in self.relations)

  @property
  def modifiers(self) -> dict[str, tuple[str, ...]]:
    """{entity type: modifier types that an entity of it can have}, where there are any."""
    mains = dict.fromkeys(of for relation in self.relations for of in relation.of)
    return {main: tuple(relation.name for relation in self.relations if main in relation.of)
            for main in mains}


# The paper's task: docs/methods.md, section 5, with its 22 valid (entity, modifier) pairs.
# Definitions have few words on purpose: every step of training pays for each token of the prompt.
_EVERY = ('problem', 'treatment', 'drug', 'test')
PAPER = Schema((
  EntityType('problem', 'a disease, symptom, abnormal finding or injury', 'fever'),
  EntityType('treatment', 'a procedure, device or therapy, not a drug', 'dialysis'),
  EntityType('test', 'a laboratory test, imaging study, vital sign or examination', 'chest x-ray'),
  EntityType('drug', 'a medication, by name or by class', 'aspirin'),
), (
  RelationType('severity', 'how bad a problem is', 'severe', ('problem',)),
  RelationType(
    'condition', 'the circumstance in which a problem shows', 'on exertion', ('problem',)),
  RelationType('uncertain', 'doubt that a problem is there', 'possible', ('problem',)),
  RelationType('subject', 'who has the problem, if not the patient', 'mother', ('problem',)),
  RelationType('bodyloc', 'the part of the body', 'left knee', ('problem',)),
  RelationType('course', 'how a problem develops', 'worsening', ('problem',)),
  RelationType('temporal', 'when, or since when', 'since Monday', _EVERY),
  RelationType('negation', 'that it is absent or was not done', 'denies', _EVERY),
  RelationType('strength', 'the amount of substance in one unit of a drug', '25 mg', ('drug',)),
  RelationType('dosage', 'the amount to take at once', '2 puffs', ('drug',)),
  RelationType('duration', 'how long a drug is taken', 'for 10 days', ('drug',)),
  RelationType('form', 'the form of a drug', 'tablet', ('drug',)),
  RelationType('frequency', 'how often a drug is taken', 'twice daily', ('drug',)),
  RelationType('route', 'how a drug is given', 'by mouth', ('drug',)),
  RelationType('labvalue', 'the result of a test', '7.2', ('test',)),
  RelationType('reference_range', 'the normal range of a test', '4-11', ('test',)),
))
ENTITY_TYPES, MODIFIER_TYPES = PAPER.types, PAPER.modifiers


class InputError(ValueError):
  """Bad input from a user: one line naming the value, what is allowed and where it came from.

  The command line prints it without a traceback and leaves with exit status 2. What libraries say
  of a fault may have several lines; here they become one. `parts` are the errors that one error
  tells of, where it tells of several.
  """

  parts: tuple = ()

  def __init__(self, message: str):
    super().__init__(' '.join(line.strip() for line in message.splitlines()))


class Span(NamedTuple):
  """A typed half-open character range [start, end) of a text."""

  start: int
  end: int
  type: str


class Relation(NamedTuple):
  """A typed link between two spans of one document, by their index in `Document.spans`.

  In a schema's own names `type` is a modifier type, `head` the main entity, `tail` the modifier.
  As corpora name things, a relation of a span to itself is an attribute ('POLARITY=NEG').
  """

  type: str
  head: int
  tail: int


class Document(NamedTuple):
  """One note with stand-off annotation; every offset is a character index into `text`.

  `source` is the article, trial or patient that it is a part of; '' = what its name says, see
  `data/sources.py`. Documents of one source are never split, and are drawn together.
  `sentences` are the ranges [start, end) of the sentences that the corpus itself gives; text
  outside of them is split by rules. `covering` are the ranges of spans that only cover an entity in
  several pieces: other words stand between these. `linked` are relations between concepts, (type,
  spans that mention the one, spans that mention the other): `relations` has their first mentions.
  `target` is what is to be written about `text`, of a row of the task 'text'; None = a note.
  """

  name: str
  text: str
  spans: tuple[Span, ...]
  relations: tuple[Relation, ...]
  source: str = ''
  sentences: tuple[tuple[int, int], ...] = ()
  covering: tuple[tuple[int, int], ...] = ()
  linked: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
  target: str | None = None


class SiteCorpus(NamedTuple):
  """The notes of one site, split by source.

  `types` are the entity types of `schema` that the site annotated; a type outside it is neither
  asked of the model nor scored (partial annotation: docs/methods.md, section 4). `report` counts
  what reading kept and dropped, e.g. {'documents': 200, 'nested': 31, 'discontinuous': 44}.
  `modifiers` are the modifier types it annotated of each entity type, {'drug': ('route',)}, {} if
  it has no relations; None = those that occur in its notes. `definitions` are entity types that
  mean something else there than the prompt says by default, {type: what it is}. `prompted` are the
  modifiers that its relation prompt names, where these are not `modifiers`: at an external cohort,
  whose prompt is that of a site that trains.
  """

  name: str
  types: tuple[str, ...]
  train: tuple[Document, ...]
  test: tuple[Document, ...]
  report: dict[str, int]
  modifiers: dict[str, tuple[str, ...]] | None = None
  definitions: dict[str, str] = {}
  prompted: dict[str, tuple[str, ...]] | None = None
  schema: Schema = PAPER


class Example(NamedTuple):
  """One sentence. `entities` are what to find in it: flat, sorted, non-overlapping, with offsets
  into `text`; `start` is the sentence's first character in the document.

  In entity recognition they are the entities and `main` is None. In relation extraction there is
  one example per main entity, and they are the modifiers of `main` (docs/methods.md, section 5).
  `source` is that of the document; '' = the document itself. In the task 'text' the example is a
  whole row, and `target` is the text to be written; None in the other tasks.
  """

  document: str
  start: int
  text: str
  entities: tuple[Span, ...]
  main: Span | None = None
  source: str = ''
  target: str | None = None


class Parse(NamedTuple):
  """What a generated text says about its input; see `data/answers/`."""

  spans: tuple[Span, ...]  # sorted, flat; offsets into the input text
  failed: bool             # not wholly understood: what could be placed is in `spans` all the same
  copied: bool             # what it repeats of the input, it repeats character for character
  dropped: int             # entities of an asked type that stand nowhere in the input


class Skew(NamedTuple):
  """What a partition of pooled notes came out as."""

  sizes: tuple[int, ...]   # training notes (or sentences, as dealt out) of each site
  type_divergence: float   # bits, `data/statistics.py` of the sites' mixes of entity types
  annotated: float         # share of (site, entity type) pairs that are annotated
  word_divergence: float = nan  # bits, of the sites' words: their styles and subjects
  crossing: int = 0        # entities lost where notes were cut into sentences

  def __str__(self) -> str:
    return (
      self.told('entity types') + f', {self.annotated:.0%} of types annotated'
      + (f', {self.crossing} entities cross the end of a sentence' if self.crossing else ''))

  def told(self, types: str) -> str:
    """Sizes and divergences in words; `types` are what was counted, such as 'targets' of rows."""
    return (
      f'{len(self.sizes)} sites of {min(self.sizes)} to {max(self.sizes)} (median '
      f'{int(median(self.sizes))}), {types} diverge by {self.type_divergence:.3f} bits'
      + ('' if isnan(self.word_divergence) else f', words by {self.word_divergence:.3f}'))


class Batch(NamedTuple):
  """One optimiser step of one site: a shared instruction and rows of packed examples.

  Every example goes on from the end of the instruction: its positions start at the
  instruction's last token, which is repeated as the first token of each example and left out
  of `prefix`. Packing never changes what a step means (tested against one padded row each).
  """

  prefix: Any          # i32[P]     the instruction without its last token; -1 = padding
  prefix_targets: Any  # i32[P|0]   the token after each prefix token; empty when not supervised
  prefix_weight: Any   # f32[P|0]   examples of the step for which that token counts
  tokens: Any          # i32[R, N]
  positions: Any       # i32[R, N]  rotary positions
  segments: Any        # i32[R, N]  1, 2, ... per example of the row; 0 = padding
  target_row: Any      # i32[M]     rows and, in them, places whose next token is supervised;
  target_index: Any    # i32[M]     one list for all rows, which is padded once and not in each
  targets: Any         # i32[M]     that token
  target_weight: Any   # f32[M]     1, or 0 for padding


class Program(NamedTuple):
  """A call of a compiled function, for planning its memory."""

  function: Any   # jitted
  arguments: Any  # of the call, arrays or their shapes
  brought: int    # bytes of them on a device, without the base
  working: int    # bytes that it surely holds besides them: an estimate that costs no compilation


class LabelBatch(NamedTuple):
  """One optimiser step of one site for a token classifier: one example a row, padded.

  `B` are rows, `T` tokens of a row, `Y` labels; label 0 is 'O' and always allowed.
  """

  tokens: Any   # i32[B, T], or i32[B, T, F]: F features of each word
  valid: Any    # bool[B, T]  False = padding
  labels: Any   # i32[B, T]   0 where nothing is supervised
  weight: Any   # f32[B, T]   1 at the first sub-token of a word of the text, else 0
  allowed: Any  # bool[Y]     labels that the site annotates

"""The units of the study: every run that the tables of docs/results.md are made of.

A unit is one run: one regime with one seed, or one arm of a new site. What it changes in the
shipped configuration `real_ner` stands here, and nowhere else. `study.py` carries units out, and
`study_tables.py` makes tables of their rows.
"""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fedmedjax.compare import ablation
from fedmedjax.compare.model_bytes import MODELS, ledger_figures
from fedmedjax.compare.rows import DEPTH, Row, Study, regime_row, taking_part
from fedmedjax.compare.scenarios import LOCAL, new_site
from fedmedjax.experiment import defaults
from fedmedjax.experiment.config import leaves
from fedmedjax.experiment.presets import trained_presets
from fedmedjax.experiment.shipped import ablation as shipped_ablation
from fedmedjax.experiment.shipped import real_ner
from fedmedjax.runtime.progress import Reporter

SEEDS = (42, 43, 44, 45, 46)
FEW_SEEDS = SEEDS[:3]  # of what asks for more runs a seed
POOL = ('maccrobat2020', 'chia')
EXTERNAL = 'ncbi_disease'

# Seconds on two quiet cores that multiply matrices at 340 GFLOP/s, for `Unit.hours`.
_STEP = 1.75      # of training on 4 examples
_SENTENCE = 0.45  # answered by a trained adapter
_UNTUNED = 1.3    # answered by the base alone, which goes on until it is cut off
_FORCED = 0.2     # read with its right answer
_START = 60.0     # reading and compiling


class Unit(NamedTuple):
  """A unit of work that makes one row of docs/results/STUDY.jsonl."""

  study: str                 # 'r1'
  name: dict[str, Any]       # what tells it from the study's other units, {'regime': ..., ...}
  hours: float               # about how long it takes on two quiet cores
  run: Row | None = None     # the run that it is
  start: 'Unit | None' = None  # the unit whose adapter the run starts from
  # (reporter) -> what it computes where it is no run, and the settings of that.
  figures: Callable[[Reporter], dict[str, Any]] | None = None
  settings: dict[str, Any] = {}

  def __str__(self) -> str:
    return ' '.join([self.study, *(f'{key}={value}' for key, value in self.name.items())])


def units(study: str, runs: Path) -> list[Unit]:
  """The units of a study, in the order in which they are carried out.

  Args:
    study: a key of STUDIES.
    runs: the folder of all runs.
  """
  return STUDIES[study](runs)


def base_config() -> ConfigDict:
  """What R1 to R4 share: four unlike sites of 50 sentences each, 6 rounds of 10 steps of 4."""
  config = real_ner.get_config('fed_medlora')
  config.data.update(
    sites=POOL, external=(EXTERNAL,), max_train_sentences=50, validation_examples=8)
  config.data.partition.update(kind='types', unit='sentence', sites=4, strength=0.3)
  config.fed.update(rounds=6, local_steps=10, batch_size=4)
  # 200 test sentences in all, and 200 of the cohort that nobody trains on.
  config.eval.update(
    zero_shot=False, max_examples=100, max_external=200, cross_site=True, teacher_forced=True)
  # A round that calls the host is compiled anew in every process.
  config.log.steps = False
  # Runs of one study are made on several machines.
  config.model.matmul = 'float32'
  return config


def _seeded(config: ConfigDict, seed: int) -> ConfigDict:
  config = copy.deepcopy(config)
  config.seed = seed
  return config


def _unit(
  study: str, name: dict[str, Any], config: ConfigDict, regime: str, folder: Path,
  changes: dict[str, Any], start: Unit | None = None,
) -> Unit:
  """A unit that trains a regime; `changes` are flat keys."""
  _, row = regime_row(Study(config, folder, (regime,)), regime, folder, changes)
  return _of_row(study, name, row, start)


def _of_row(study: str, name: dict[str, Any], row: Row, start: Unit | None = None) -> Unit:
  return Unit(study, name, _hours(row.config), row, start)


def _hours(config: ConfigDict) -> float:
  """About how long a run takes, see the numbers above."""
  fed = config.fed
  steps = fed.rounds * (fed.round_steps or fed.local_steps * taking_part(config)) * fed.train
  alone = taking_part(config) if fed.sharing == 'nothing' else 1
  tested = (config.eval.max_examples or _ALL) * len(config.data.sites) + (
    config.eval.max_external * len(config.data.external))
  each = _SENTENCE if fed.train or config.lora.start else _UNTUNED
  each += _FORCED * config.eval.teacher_forced
  return (_START + steps * _STEP * fed.batch_size / 4 + alone * tested * each) / 3600


# Sentences of the test notes of EXTERNAL, about.
_ALL = 893


def r1(runs: Path) -> list[Unit]:
  """One site alone, the federation, and all notes in one place, at equal steps and equal depth."""
  found = []
  for seed in SEEDS:
    for regime in ('fed_medlora', 'single_site', 'centralised', DEPTH):
      found.append(_unit(
        'r1', {'regime': regime, 'seed': seed}, _seeded(base_config(), seed), regime,
        runs / 'r1' / f'seed_{seed}', {}))
  # The base alone has no seed.
  return [*found, _unit(
    'r1', {'regime': 'zero_shot', 'seed': SEEDS[0]}, _seeded(base_config(), SEEDS[0]), 'zero_shot',
    runs / 'r1' / f'seed_{SEEDS[0]}', {})]


# Methods of R2 that judge sites on validation notes, beside fed_medlora, which does not.
JUDGES = ('fed_medlora_plus', 'fed_medlora_answer', 'fed_medlora_peer')
V_OF = ('sites', 'clean')


def r2(runs: Path) -> list[Unit]:
  """The largest of four sites calls every entity by another name; V of the sites, or clean."""
  changes = {
    'data.partition.sizes': (.4, .2, .2, .2), 'data.partition.corrupted_sites': (0,),
    'data.partition.corruption': 'mislabel', 'data.external': (), 'eval.cross_site': False}
  found = []
  for seed in FEW_SEEDS:
    config, folder = _seeded(base_config(), seed), runs / 'r2' / f'seed_{seed}'
    found.append(_unit(
      'r2', {'regime': 'fed_medlora', 'v': 'none', 'seed': seed}, config, 'fed_medlora', folder,
      changes))
    for held in V_OF:
      # As many sentences as the four sites' V have together.
      own = {} if held == 'sites' else {
        'data.server_validation': CLEAN_V, 'data.validation_examples': 32}
      for regime in JUDGES:
        found.append(_unit(
          'r2', {'regime': regime, 'v': held, 'seed': seed}, config, regime, folder / f'v_{held}',
          changes | own))
  return found


# The server's own notes of R2.
CLEAN_V = 'bc5cdr'

# Sentences that the new site of R4 adds.
ADDED = (0, 25, 100)


def r4(runs: Path) -> list[Unit]:
  """A site that took no part and adds n sentences, from the federation's adapter and the base."""
  federations = {unit.name['seed']: unit for unit in r1(runs) if
                 unit.name['regime'] == 'fed_medlora'}
  found = []
  for seed in FEW_SEEDS:
    config = _seeded(base_config(), seed)
    config.eval.max_examples = 200
    parts = new_site(Study(
      config, runs / 'r1' / f'seed_{seed}', ('fed_medlora',), new_site=EXTERNAL,
      sentences=ADDED))[1:]
    for part in parts:
      for arm, row in part.rows.items():
        alone = arm == LOCAL
        found.append(_of_row(
          'r4', {'n': int(part.label), 'arm': 'base' if alone else 'federated', 'seed': seed}, row,
          None if alone else federations[seed]))
  return found


def r5(runs: Path) -> list[Unit]:
  """Bytes of a round of larger models, from their shapes alone."""
  del runs
  return [Unit('r5', {'model': model}, 0.0, figures=partial(ledger_figures, model))
          for model in MODELS]


# The methods of R6's first row; those that came later are a row of their own, beside fed_medlora.
_FIRST = tuple(
  'fed_medlora uniform fed_medlora_plus fed_medlora_plus_code fed_medlora_answer '
  'fed_medlora_peer fed_medlora_loo fed_medlora_grad flexlora flora fedex_lora '
  'fedex_lora_truncated lora_fair hetlora median trimmed_mean geometric_median krum multi_krum '
  'clipped_mean fedprox scaffold feddyn ffa_lora fedsa_lora rolora fedavgm fedadagrad fedadam '
  'fedyogi single_site centralised'
  .split())
# Blocks of R6: presets and settings.
BLOCKS = {
  'methods': (_FIRST, tuple(ablation.SETTINGS)),
  'later_methods': (
    ('fed_medlora', *(name for name in trained_presets() if name not in _FIRST)),
    tuple(ablation.SETTINGS)),
  'sizes': (ablation.SCALED, tuple(ablation.SCALES))}
_TAGGER_RUN = 0.7  # seconds, of R6


def tagger_figures(block: str, runs: Path, reporter: Reporter) -> dict[str, Any]:
  """The lines of an ablation, as its results.jsonl has them, without weights and cohorts."""
  presets, settings = BLOCKS[block]
  rows = ablation.ablation(
    shipped_ablation.get_config(), runs / 'r6', presets, settings, range(10), reporter)
  kept = ('preset', 'setting', 'seed', 'f1', 'refused')
  return {'runs': [{key: row[key] if key != 'f1' else round(row[key], 6)
                    for key in kept if key in row} for row in rows]}


def r6(runs: Path) -> list[Unit]:
  """The word tagger: every method in every setting, then four regimes with more and less data."""
  values, usual = (leaves(one.to_dict()) for one in (
    shipped_ablation.get_config(), defaults.get_config()))
  changed = {key: value for key, value in values.items() if value != usual[key]}

  def of(block: str) -> dict[str, Any]:
    # How long sites take matters to buffered rounds alone, which are of the later methods.
    return {key: value for key, value in changed.items()
            if block == 'later_methods' or not key.startswith('simulation.')}

  return [
    Unit('r6', {'block': block}, len(presets) * len(settings) * 10 * _TAGGER_RUN / 3600,
         figures=partial(tagger_figures, block, runs), settings=of(block) | {
           'presets': presets, 'settings': settings, 'seeds': tuple(range(10))})
    for block, (presets, settings) in BLOCKS.items()]


def ncbi(runs: Path) -> list[Unit]:
  """The NCBI disease corpus with its official splits over ten equal sites of random sentences."""
  config = _seeded(base_config(), SEEDS[0])
  config.data.update(
    sites=(EXTERNAL,), external=(), max_train_sentences=0, validation_examples=0)
  config.data.partition.update(kind='iid', sites=10, strength=1.0)
  # Three epochs: 10 rounds of 40 steps of 4 of the 500 sentences of a site.
  config.fed.update(rounds=10, local_steps=40)
  config.eval.update(max_examples=0, cross_site=False)
  # It is compared with no other row, and is the longest run: what is faster on its machine.
  config.model.matmul = 'auto'
  return [_unit(
    'ncbi', {'regime': 'fed_medlora', 'seed': SEEDS[0]}, config, 'fed_medlora', runs / 'ncbi', {})]


# Sound runs that are audited, and runs of each planted fault.
AUDITED = {'runs': 100, 'faulty': 5}
# Budgets of the curve; infinite = an ordinary run.
EPSILONS = (float('inf'), 10.0, 3.0, 1.0)
_PRIVATE_RUN = 6.0  # seconds of a word tagger's run with its attack


def private_tagger(level: str, epsilon: float, seed: int = 0) -> ConfigDict:
  """A run of the curve: four equal sites of 800 sentences, or of 200 notes."""
  config = _seeded(shipped_ablation.get_config('fed_medlora'), seed)
  config.data.update(
    synthetic_notes=400, max_train_sentences=800 if level == 'example' else 0,
    validation_examples=0)
  config.data.partition.update(unit='sentence' if level == 'example' else 'note', sites=4)
  config.fed.update(rounds=8, local_steps=20, batch_size=32)
  # Noise is on every number of the adapter.
  config.lora.rank = 2
  return _private(config, level, epsilon, 1e-5 if level == 'example' else 1e-4)


def _private(config: ConfigDict, level: str, epsilon: float, delta: float) -> ConfigDict:
  if math.isfinite(epsilon):
    # A row can be made again.
    config.privacy.update(unit=level, epsilon=epsilon, delta=delta, noise_from_seed=True)
  return config


def privacy(runs: Path) -> list[Unit]:
  """F1 and membership by budget: the word tagger, ten seeds a unit; SmolLM2 on Chia, one seed.

  Audited tiny runs, whose bounds lie under their epsilon, are the first. What they and the units of
  the tagger compute is in scripts/privacy_curve.py.
  """
  usual = leaves(defaults.get_config().to_dict())
  found = [Unit('privacy', {'proof': 'audited runs'}, 0.01, settings=dict(AUDITED))]
  for level in ('example', 'note'):
    for epsilon in EPSILONS:
      values = leaves(private_tagger(level, epsilon).to_dict())
      changed = {key: value for key, value in values.items() if value != usual[key]}
      found.append(Unit(
        'privacy', {'level': level, 'epsilon': str(epsilon)}, 10 * _PRIVATE_RUN / 3600,
        settings=changed | {'seeds': tuple(range(10))}))
  for epsilon in EPSILONS[:2]:
    config = _private(_seeded(base_config(), SEEDS[0]), 'example', epsilon, 1e-5)
    config.data.update(sites=(POOL[1],), external=(), max_train_sentences=0, validation_examples=0)
    config.data.partition.update(kind='iid', sites=2, strength=1.0)
    config.lora.rank = 4
    config.fed.update(rounds=2, local_steps=16, batch_size=8)
    config.eval.update(max_examples=60, cross_site=False, teacher_forced=True)
    found.append(_unit(
      'privacy', {'model': 'SmolLM2-135M', 'level': 'example', 'epsilon': str(epsilon)}, config,
      'fed_medlora', runs / 'privacy' / f'epsilon_{epsilon:g}', {}))
  return found


# R3 is a table of R1's rows, which are tested on the external cohort, too.
STUDIES: dict[str, Callable[[Path], Sequence[Unit]]] = {
  'r1': r1, 'r2': r2, 'r3': r1, 'r4': r4, 'r5': r5, 'r6': r6, 'ncbi': ncbi,
  'privacy': privacy}

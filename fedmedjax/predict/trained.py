"""The adapter of a finished run, with the settings of its base model and its prompts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedmedjax.data.schema import FILE as SCHEMA
from fedmedjax.data.tasks import TASKS, Ask, ask
from fedmedjax.data.text_task import TEXT
from fedmedjax.data.wording import FILE as PROMPT
from fedmedjax.experiment import defaults, matmul
from fedmedjax.experiment.config import CHECKS, leaves
from fedmedjax.experiment.own_schema import study_schema
from fedmedjax.store.files import read_json
from fedmedjax.types import PAPER, InputError, Schema, SiteCorpus

# Flag -> the key of the run's config.json that it overrides.
FLAGS = {
  'base': 'model.path', 'dtype': 'model.dtype', 'matmul': matmul.KEY,
  'quantization': 'model.quantization',
  'batch_size': 'eval.batch_size',
  'mesh_site': 'mesh.site', 'mesh_fsdp': 'mesh.fsdp', 'mesh_tensor': 'mesh.tensor'}
_SETTINGS = (*FLAGS.values(), 'data.style', 'data.chat', 'data.shots', 'eval.max_new_ratio',
             'eval.guesses')
_LISTED = 8  # most names in a printed line
_INVALID = 'invalid'  # no type, but a row of scores in summaries of earlier versions


class Trained(NamedTuple):
  """An adapter and how it is to be used."""

  adapter: Path             # folder in PEFT's format
  settings: dict[str, Any]  # flat config keys: model.*, data.style, eval.max_new_ratio, ...
  asks: tuple[Ask, ...]     # the tasks that every sentence is asked, entity recognition first
  told: tuple[str, ...]     # a sentence for each of `asks`: which prompt was chosen
  schema: Schema = PAPER    # the run's


def read_trained(folder: Path, flags: Mapping[str, Any], site: str, types: str) -> Trained:
  """Finds an adapter, its run's config.json and summary.json, and chooses the prompts.

  A model answers best what it was trained on, so the prompts are those of a site of the run: of
  `site`, else of the site whose own adapter this is, else for each task of the training site that
  annotates most. The examples that they show are those of the run.

  Args:
    folder: an adapter's folder, or one that contains a single adapter, such as a run's workdir.
    flags: values of FLAGS, None where not given.
    site: a site of the run; '' = chosen as above.
    types: entity types and pairs of entity and modifier type, 'drug,problem,drug.route', to ask
      for instead of a site's types; '' = a site's. Required when no run is around the adapter.

  Raises:
    InputError: no adapter, several, a classifier, a run that is not finished or has not kept the
      examples that its prompts show, or unknown names.
  """
  adapter = _find_adapter(folder)
  run = _find_run(adapter)
  _check_annotates(run, adapter)
  settings, schema = _settings(run, flags, adapter), _schema(run)
  if site and types:
    raise InputError(f'--site={site}, --types={types}: only one of them is allowed')
  if types:
    names = [name.strip() for name in types.split(',')]
    return Trained(adapter, settings, _typed(names, settings['data.style'], schema),
                   (f'asked for {", ".join(names)}' + (
                     f', without the {settings["data.shots"]} examples that the run showed'
                     if settings['data.shots'] else ''),), schema)
  if run is None or not (run / 'summary.json').is_file():
    raise InputError(
      f'--adapter={adapter}: no finished run is around it (summary.json), which would say what to '
      'ask; finish the run, or name entity types, such as --types=problem,drug')
  asks, told = _of_a_site(
    run / 'summary.json', site, adapter.name, settings, schema)
  return Trained(adapter, settings, asks, told, schema)


def _find_adapter(folder: Path) -> Path:
  """The folder itself, or the only adapter up to two levels below it."""
  if (folder / 'adapter_config.json').is_file():
    return folder
  adapters = sorted(
    path.parent for depth in ('*', '*/*') for path in folder.glob(f'{depth}/adapter_config.json'))
  if len(adapters) == 1:
    return adapters[0]
  if adapters:
    more = f' and {len(adapters) - _LISTED} more' if len(adapters) > _LISTED else ''
    raise InputError(f'--adapter={folder}: holds {len(adapters)} adapters, choose one: '
                     f'{", ".join(map(str, adapters[:_LISTED]))}{more}')
  run = _find_run(folder)
  learner = read_json(run / 'config.json').get('fed.learner') if run else None
  if learner == 'tagger':
    raise InputError(
      f'--adapter={folder}: {run} trained a word tagger (config.fed.learner), which annotates no '
      "new notes; train the learner 'lora'")
  if learner == 'bert':
    raise InputError(
      f'--adapter={folder}: {run} trained a BERT classifier, which has no adapter; transformers '
      'loads its model/')
  raise InputError(
    f"--adapter={folder}: no adapter in PEFT's format (adapter_config.json) is there")


def _find_run(adapter: Path) -> Path | None:
  """The run's workdir: the folder itself or one of two above it, as in adapter/SITE."""
  for folder in (adapter, *adapter.absolute().parents[:2]):
    # Models in Hugging Face's format have a config.json, too.
    path = folder / 'config.json'
    if path.is_file() and 'fed.preset' in read_json(path):
      return folder
  return None


def _check_annotates(run: Path | None, adapter: Path) -> None:
  """Raises InputError where the run's task is one of the user's own, which marks no spans."""
  if run and TEXT in read_json(run / 'config.json').get('data.tasks', ()):
    raise InputError(
      f"--adapter={adapter}: {run} trained an own task (config.data.tasks=('text',)), and "
      "fedmedjax.predict annotates notes only; the adapter is in PEFT's format and answers "
      'wherever PEFT loads it, with the prompts of summary.json (instructions)')


def _settings(run: Path | None, flags: Mapping[str, Any], adapter: Path) -> dict[str, Any]:
  """The values of _SETTINGS: flags, else the run's config.json, else the defaults."""
  settings = leaves(defaults.get_config().to_dict())
  # As a run multiplied whose version had no such key.
  recorded = {matmul.KEY: matmul.WIDE} | read_json(run / 'config.json') if run else {}
  if run is None and flags['base'] is None:
    raise InputError(
      f'--adapter={adapter}: no run is around it (config.json), which would name its base model; '
      "name it, as in --base=FOLDER_OR_GGUF_OR_HUB_ID ('' = SmolLM2)")
  given = {key: flags[flag] for flag, key in FLAGS.items() if flags[flag] is not None}
  chosen = {key: (settings | recorded | given)[key] for key in _SETTINGS}
  names = {key: f'--{flag}' for flag, key in FLAGS.items()}
  for key, value in chosen.items():
    if not CHECKS[key].allows(value):
      place = names[key] if key in given else f'{run}/config.json: {key}'
      raise InputError(f'{place}={value!r}: {CHECKS[key].wording} is allowed')
  if chosen['model.dtype'] != 'float32' and matmul.KEY not in given:
    chosen[matmul.KEY] = matmul.WIDE  # the run's is of float32
  matmul.check_matmul(chosen)
  return chosen


def _schema(run: Path | None) -> Schema:
  """The schema and words that a run keeps in its folder; the paper's where it keeps none."""
  held = {name: run / name if run and (run / name).exists() else '' for name in (SCHEMA, PROMPT)}
  return study_schema(held[SCHEMA], held[PROMPT])


def _pairs(schema: Schema) -> dict[str, tuple[str, str]]:
  """{'drug.route': ('drug', 'route')} of all pairs."""
  return {f'{of}.{kind}': (of, kind) for of, kinds in schema.modifiers.items() for kind in kinds}


def _ask(task: str, names: Sequence[str], style: str, schema: Schema) -> Ask:
  """A task for entity types ('drug') or pairs of entity and modifier type ('drug.route')."""
  known, pairs = _pairs(schema), {}
  for name in names:
    main, *modifier = known.get(name, (name,))
    pairs[main] = (*pairs.get(main, ()), *modifier)
  return ask(task, SiteCorpus('', tuple(pairs), (), (), {}, pairs, schema=schema), style)


def _typed(names: Sequence[str], style: str, schema: Schema) -> tuple[Ask, ...]:
  """The tasks for the names of --types."""
  known = (*schema.types, *_pairs(schema))
  for name in names:
    if name not in known:
      raise InputError(f'--types: {name!r} is unknown; allowed are {", ".join(known)}')
  asks = [_ask(task, names, style, schema) for task in TASKS]
  return tuple(chosen for chosen in asks if chosen.types)


def _of_a_site(
  path: Path, site: str, owner: str, settings: Mapping[str, Any], schema: Schema
) -> tuple[tuple[Ask, ...], tuple[str, ...]]:
  """(tasks, sentences about the choice) with the prompts that the run's summary.json records.

  See `read_trained` for the choice; `owner` is the site whose own adapter this may be.
  """
  summary = read_json(path)
  if settings['data.shots'] and 'shots' not in summary:
    raise InputError(
      f'{path}: the run asked with config.data.shots={settings["data.shots"]} examples out of its '
      'notes, which were not kept (config.store.text=False); to ask without them, name entity '
      'types, such as --types=problem,drug')
  try:
    shots = {(name, task): tuple((before, after) for before, after in shown)
             for name, tasks in summary.get('shots', {}).items()
             for task, shown in tasks.items()}
    prompts = {name: dict(tasks) for name, tasks in summary['instructions'].items()}
    names = {name: {task: _names(summary['scores'][name][task], schema) for task in tasks}
             for name, tasks in prompts.items()}
    trained = [name for name in summary['sites'] if name in prompts]
  except (KeyError, TypeError, ValueError, AttributeError):
    raise InputError(
      f'{path}: does not say what its sites were asked; name entity types, such as '
      '--types=problem,drug') from None
  if site and site not in prompts:
    raise InputError(f'--site={site}: no site of {path}; it has {", ".join(prompts)}')
  site = site or (owner if owner in prompts else '')
  asks, told = [], []
  for task in TASKS:
    asked = [name for name in prompts if task in prompts[name]]
    # Of several sites with equally many types, max() chooses the first.
    most_types = max([name for name in trained if name in asked] or asked, default=None,
                     key=lambda name: len(names[name][task]))
    chosen = site or most_types
    if chosen not in asked:
      continue
    asks.append(_ask(task, names[chosen][task], settings['data.style'], schema)._replace(
      shots=shots.get((chosen, task), ()),
      instruction=prompts[chosen][task],
      heading=(prompts[chosen][task].splitlines(keepends=True) or [''])[-1]))
    missing = {kind: name for name in asked for kind in names[name][task]
               if kind not in names[chosen][task]}
    mains = asks[-1].asked if asks[-1].given else ()
    what = f'modifiers of {", ".join(mains)}' if mains else ', '.join(names[chosen][task])
    told.append(f'asked for {what}, with the prompt of site {chosen}' + (
      f' and its {len(asks[-1].shots)} examples' if asks[-1].shots else '') + (
      '; not for ' + ', '.join(f'{kind} (--site={name})' for kind, name in missing.items())
      if missing else ''))
  if not asks or asks[0].given:
    raise InputError(
      f'{path}: {"site " + site if site else "its run"} was asked for modifiers of given entities '
      'only, and notes have no entities yet; '
      + ('choose another site' if site else 'train on both tasks'))
  return tuple(asks), tuple(told)


def _names(scores: Mapping, schema: Schema) -> list[str]:
  """The names, as `_ask` takes them, that a site was asked for: its scores list every type."""
  return [name for name in scores.get('triple', scores)['per_type']
          if name != _INVALID or name in schema.types]

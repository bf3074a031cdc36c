"""The public functions of `fedmedjax`: a study in Python, without flags and without a fork."""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import safetensors.numpy
from ml_collections import ConfigDict

from fedmedjax.data.formats.corpora import site_of_rows
from fedmedjax.data.site import SiteData
from fedmedjax.experiment import build, matmul
from fedmedjax.experiment.command_line import choose_preset, parse
from fedmedjax.experiment.config import leaves, validate
from fedmedjax.experiment.folders import SITE_NAME
from fedmedjax.experiment.notes import data_seed
from fedmedjax.experiment.own_parts import OWN_KEYS, OwnPart, from_python
from fedmedjax.experiment.privacy import is_private
from fedmedjax.experiment.types import Data, Study
from fedmedjax.runtime.cli import set_up
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store import results, secret
from fedmedjax.store.files import plain, read_json
from fedmedjax.train import run as training
from fedmedjax.types import Document, InputError, SiteCorpus

if TYPE_CHECKING:
  import pandas

_FACTOR = re.compile(r'.*\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.lora_([AB])\.weight')
_PATH = re.compile(r'layers/(\w+)/([ab])')
# Keys beside config.data that decide what `load_data` gives.
_OF_DATA = (
  'model.path', 'model.dtype', 'model.matmul', 'model.quantization', 'fed.learner', 'bert.path',
  'bert.max_length', 'tagger.width', 'tagger.buckets', 'tagger.max_length', 'eval.max_examples',
  'eval.max_external')


class Results(NamedTuple):
  """What a finished run left."""

  workdir: Path
  summary: dict[str, Any]        # summary.json, see docs/files.md
  metrics: list[dict[str, Any]]  # the rows of `load_results`, see docs/files.md
  # {'layers': {'q_proj': {'a': f32[L, D_in, r], 'b': f32[L, r, D_out]}}}; {site: such a tree} where
  # sites have adapters of their own; None where none was trained
  adapter: dict | None


def load_config(name: str | Path, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
  """A configuration, checked.

  Args:
    name: 'fedmedjax:NAME' of a shipped one, or a file with get_config(preset); with ':PRESET'
      behind it if wanted, as in 'fedmedjax:quickstart:fed_medlora'.
    overrides: flat keys, {'fed.rounds': 5, ...}; they go before the file and the preset. The
      value of 'fed.preset' may be a row of your own, {'name': 'mine', 'aggregator': ...}.

  Raises:
    InputError: an unknown name, key or preset, or a value that is not allowed.
  """
  config, _, _ = parse(['fedmedjax', f'--config={name}'], lambda flags: None, check=False)
  overrides = dict(overrides or {})
  if 'fed.preset' in overrides:
    choose_preset(config, overrides.pop('fed.preset'))
  try:
    config.update_from_flattened_dict(overrides)
  except (KeyError, AttributeError, TypeError) as error:
    raise InputError(f'overrides: {" ".join(str(error).split())[:300]}') from None
  validate(config)
  return config


def Site(
  name: str, rows: Iterable[Mapping[str, Any]] = (), *, test_share: float | None = None,
  types: Sequence[str] = (), train: Sequence[Document] = (), test: Sequence[Document] = (),
  report: Mapping[str, int] = MappingProxyType({}), **notes: Any,
) -> SiteCorpus:
  """A site of your own: rows for config.data.tasks=('text',), or notes with annotation.

  Args:
    name: letters, digits, _ . - .
    rows: {'input': text, 'target': text}, with 'source' (which rows belong to one patient or note)
      and 'part' ('train', 'dev' or 'test') if wanted.
    test_share: of the sources that rows are tested on, where they do not say their part; None =
      0.2, of an external cohort all, of the server's validation set none.
    types, train, test, report, **notes: of notes instead, the fields of `types.SiteCorpus`.

  Raises:
    InputError: a row lacks a text, there are too few rows to split, or both or neither are given.
  """
  if not types:
    if train or test or notes:
      raise InputError(f'Site({name!r}): types=..., the entity types that it annotates, are needed')
    if test_share is not None and not 0 <= test_share <= 1:
      raise InputError(
        f'Site({name!r}): test_share={test_share!r}: a number in [0, 1], or None, is allowed')
    return site_of_rows(name, rows, test_share)
  if rows:
    raise InputError(f'Site({name!r}): rows, or notes with types; one of the two is allowed')
  return SiteCorpus(name, tuple(types), tuple(train), tuple(test), dict(report), **notes)


def load_data(
  config: ConfigDict, *, sites: Iterable[SiteCorpus] | None = None,
  reporter: Reporter | None = None,
) -> Data:
  """The model and the tokenised notes of a configuration; runs of one configuration share them.

  Args:
    config: validated.
    sites: the notes of sites in place of config.data.sites, see `Site`; `run` then takes the
      names of its sites from them. Those that config.data.external or server_validation names are
      read as such.
    reporter: shows progress; None = on the terminal or in the notebook.
  """
  given = () if sites is None else _some(sites)
  if given:
    config = _named(config, given)
    validate(config)
  return _loaded(config, given, reporter)


def _some(sites: Iterable[SiteCorpus]) -> list[SiteCorpus]:
  """The sites as a list; raises InputError when there are none."""
  given = list(sites)
  if not given:
    raise InputError('sites=[]: at least one site is needed')
  return given


def _loaded(
  config: ConfigDict, given: Sequence[SiteCorpus], reporter: Reporter | None,
  own: Mapping[str, OwnPart] | None = None, workdir: Path | None = None,
) -> Data:
  """The data of a configuration that names the given sites.

  `own` are parts given in Python, and `workdir` the folder of the run that they are loaded for.
  """
  set_up()
  reporter = reporter or Reporter()
  config = matmul.settled(config, reporter, [workdir] if workdir else ())
  data = build.load_data(config, reporter, own=own, given={site.name: site for site in given})
  return data._replace(settings=_loaded_with(config))


def _loaded_with(config: ConfigDict) -> dict[str, Any]:
  """The values that decide what `load_data` gives, by flat key; 'data.seed' as it is in force."""
  values = plain(leaves(config.to_dict()))
  used = {key: value for key, value in values.items()
          if key.startswith('data.') or key in _OF_DATA} | {'data.seed': data_seed(config)}
  # The head of a classifier is drawn when it is loaded.
  return used | {'seed': config.seed} if config.fed.learner == 'bert' else used


def _check_loaded(config: ConfigDict, data: Data) -> None:
  """Raises InputError when a run's configuration would load other data."""
  wanted = _loaded_with(config)
  for key, value in data.settings.items():
    if (own := wanted.get(key)) != value and (key, own) != (matmul.KEY, matmul.AUTO):
      raise InputError(
        f'data=...: loaded with config.{key}={value!r}, and this run has {own!r}; give the '
        'data of fedmedjax.load_data(config), or leave out data=')


def _named(config: ConfigDict, sites: Sequence[SiteCorpus | SiteData]) -> ConfigDict:
  """A copy of `config` whose sites have the names of `sites`."""
  config = copy.deepcopy(config)
  names = tuple(site.name for site in sites)
  elsewhere = {*config.data.external, config.data.server_validation}
  config.data.sites = tuple(name for name in names if name not in elsewhere)
  for place, name in enumerate(names):
    if not SITE_NAME.fullmatch(name) or name in names[:place]:
      raise InputError(
        f'sites[{place}]: name {name!r}: different names of letters, digits, _ . -, no dot in '
        'front, are allowed')
  return config


def prepare(config: ConfigDict, data: Data, **parts: Any) -> Study:
  """A study that is ready to run: its algorithm, schedule and communication; nothing is compiled.

  Args:
    config: validated.
    data: of `load_data`.
    parts: parts of your own, by keyword: aggregator, rule, sharing, server_optimizer, partition,
      metric.

  Noise and draws of a private study are of a new secret each time, unless
  config.privacy.noise_from_seed is set; `Study.secret` has it.
  """
  config, own = _with_parts(config, parts, data)
  values = leaves(config.to_dict())
  hidden = is_private(values) and not values['privacy.noise_from_seed']
  return build.prepare(config, data, own=own, secret=secret.drawn() if hidden else None)


def run(
  config: ConfigDict, workdir: str | Path, *, data: Data | Iterable[SiteCorpus] | None = None,
  reporter: Reporter | None = None, **parts: Any,
) -> Results:
  """Trains, scores and writes one run, or resumes it; a finished one is only read.

  Args:
    config: of `load_config`.
    workdir: the run's folder.
    data: of `load_data`, to share it between runs of one model, config.data and seed of data; or
      the sites of the run, see `Site` and `load_data`.
    reporter: shows progress; None = on the terminal or in the notebook.
    parts: parts of your own, by keyword: aggregator, rule, sharing, server_optimizer, partition;
      each is a value, such as `Aggregator`, or a builder that is called with those
      hyper-parameters of the run that its signature names. And metric, a function (predictions,
      targets) -> {name: a number, or a list of one a row}, of the task 'text'.

  Raises:
    InputError: bad configuration, data, model, part or folder, before anything is saved.
    RuntimeError: training failed; finished rounds stay.
  """
  if data is None or isinstance(data, Data):
    config, own = _with_parts(config, parts, data)
  else:
    sites = _some(data)
    config, own = _with_parts(_named(config, sites), parts, None)
    data = _loaded(config, sites, reporter, own, Path(workdir))
  set_up()
  training.run(config, Path(workdir), reporter or Reporter(), data, own)
  return load_run(workdir)


def _with_parts(
  config: ConfigDict, parts: Mapping[str, Any], data: Data | None
) -> tuple[ConfigDict, dict[str, OwnPart]]:
  """A copy of the configuration that names what is given, checked, and the parts by key."""
  keys = {keyword: key for key, keyword in OWN_KEYS.items()}
  unknown = sorted(parts.keys() - keys.keys())
  if unknown:
    raise InputError(f'{unknown[0]}=...: unknown; allowed are {", ".join(keys)}')
  if data is not None and parts.get('partition') is not None:
    raise InputError(
      'partition=...: notes that are loaded are dealt out already; leave out data=, and the run '
      'loads and deals them')
  # With a partition, those that are tested are those that were dealt out.
  config = copy.deepcopy(config) if data is None else _named(
    config, data.tested if config.data.partition.kind else data.sites)
  if data is not None:
    _check_loaded(config, data)
  own = {}
  for keyword, part in parts.items():
    if part is not None:
      own[keys[keyword]] = from_python(keys[keyword], part)
      config.update_from_flattened_dict({keys[keyword]: own[keys[keyword]].name})
  validate(config, own)
  return config, own


def load_run(workdir: str | Path) -> Results:
  """What a finished run left in its folder.

  Raises:
    InputError: there is no summary.json, or it cannot be read.
  """
  workdir = Path(workdir)
  summary = read_json(workdir / 'summary.json')
  rows = results.rows_of(results.Folder(workdir.resolve().name, workdir))
  return Results(
    workdir, summary, [row._asdict() for row in rows], _adapters(workdir / 'adapter'))


def load_results(path: str | Path) -> 'pandas.DataFrame':
  """The numbers of one or many runs as a table: a row a run x round x site x task x metric.

  Args:
    path: the folder of a run of main, of compare or of sweep.

  Returns:
    A pandas frame. Its columns are those of `Results.metrics` (docs/files.md), and 'config.KEY' of
    the keys that a sweep has set, or that differ between runs of one preset.

  Raises:
    InputError: pandas is missing (pip install 'fedmedjax[results]'), there is no run, or a file
      cannot be read.
  """
  return results.load(Path(path))


def _adapters(folder: Path) -> dict | None:
  """The adapter of a folder in PEFT's format, or {name: adapter} of its sub-folders."""
  if (folder / 'adapter_model.safetensors').is_file():
    return _factors(folder / 'adapter_model.safetensors')
  found = {path.parent.name: _factors(path) for path in sorted(
    folder.glob('*/adapter_model.safetensors'))}
  return found or None


def _factors(path: Path) -> dict:
  """The tensors as {'layers': {name: {'a': f32[L, D_in, r], 'b': f32[L, r, D_out]}}}.

  They are PEFT's, or those of a tagger, which are named by their paths in this tree.
  """
  matrices: dict[str, dict[str, dict[int, np.ndarray]]] = {}
  for key, tensor in safetensors.numpy.load_file(path).items():
    if by_path := _PATH.fullmatch(key):
      matrices.setdefault(by_path[1], {}).setdefault(by_path[2], {}).update(enumerate(tensor))
      continue
    match = _FACTOR.fullmatch(key)
    if match is None:
      raise InputError(f'{path}: {key!r} is no factor of a LoRA adapter')
    layer, name, factor = match.groups()
    matrices.setdefault(name, {}).setdefault(factor.lower(), {})[int(layer)] = tensor.T
  return {'layers': {
    name: {factor: np.stack([layers[i] for i in sorted(layers)])
           for factor, layers in sorted(factors.items())}
    for name, factors in sorted(matrices.items())}}

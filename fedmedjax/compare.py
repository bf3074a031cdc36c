"""Runs several regimes of one configuration with equal local steps and tabulates them.

    python -m fedmedjax.compare --config=configs/quickstart.py --workdir=runs/compare

Each regime is a run of its own in WORKDIR/REGIME, so a stopped comparison resumes. Besides the
rows of PRESETS, `api:MODEL` asks a model behind an OpenAI-compatible endpoint; its address and key
come from OPENAI_BASE_URL and OPENAI_API_KEY, and `api` alone takes its model from OPENAI_MODEL.
"""

import copy
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from configs.base import PRESETS
from fedmedjax import api_run, page, writer
from fedmedjax.config import choose_preset, leaves, parse, validate
from fedmedjax.eval.endpoint import endpoint_from
from fedmedjax.experiment import load_data
from fedmedjax.program import guarded, set_up
from fedmedjax.progress import Reporter
from fedmedjax.report import compare_table, relation_tables, with_global
from fedmedjax.run import run
from fedmedjax.types import InputError

REGIMES = ('zero_shot', 'single_site', 'centralised', 'fed_medlora', 'fed_medlora_plus')


class Row(NamedTuple):
  """One regime, ready to run."""

  folder: str
  config: ConfigDict
  settings: dict[str, Any]  # what its folder is bound to, see writer.check_workdir
  harmless: Sequence[str]
  run: Callable[..., dict]  # (config, workdir, reporter, data) -> summary


def regime_row(config: ConfigDict, regime: str, overrides: dict[str, Any]) -> tuple[str, Row]:
  """A regime's name in the table and what it takes to run it.

  Raises:
    InputError: unknown, or an endpoint that the environment does not name.
  """
  kind, colon, model = regime.partition(':')
  if kind == 'api' and bool(colon) == bool(model):
    endpoint = endpoint_from(os.environ, model)
    # What it shares with zero-shot: nothing is trained.
    chosen = regime_config(config, 'zero_shot', overrides)
    return f'api:{endpoint.model}', Row(
      api_run.folder_name(endpoint.model), chosen, api_run.settings(chosen), api_run.HARMLESS,
      partial(api_run.run_api, endpoint=endpoint))
  if regime not in PRESETS:
    raise InputError(
      f'--regimes: {regime!r} is not one of {", ".join(PRESETS)}, api, api:MODEL')
  chosen = regime_config(config, regime, overrides)
  return regime, Row(
    regime, chosen, writer.plain(leaves(chosen.to_dict())), writer.HARMLESS, run)


def regime_config(config: ConfigDict, regime: str, overrides: dict[str, Any]) -> ConfigDict:
  """`config` as a regime; zero-shot is a regime here, not an extra.

  What the regime's row of PRESETS names is the regime; of the rest, the command line goes before
  the defaults of methods.
  """
  chosen = copy.deepcopy(config)
  choose_preset(chosen, regime)
  own = {'fed.preset', *(f'fed.{key}' for key in PRESETS[regime])}
  chosen.update_from_flattened_dict(
    {key: value for key, value in overrides.items() if key not in own})
  chosen.eval.zero_shot = False
  validate(chosen)
  return chosen


def _check_budget(rows: Iterable[Row]) -> None:
  """Raises InputError when regimes would take unequal steps: epochs count examples, and a BERT's
  are windows."""
  trained = [row.config.fed for row in rows if row.config.fed.train]
  if len({fed.learner for fed in trained}) > 1 and not all(fed.local_steps for fed in trained):
    raise InputError(
      'config.fed.local_steps=0: a BERT and a LLaMA take unlike numbers of steps an epoch; name a '
      'number >= 1, so that all regimes take as many')


def compare(
  config: ConfigDict,
  workdir: Path,
  regimes: Sequence[str],
  reporter: Reporter,
  overrides: dict[str, Any] | None = None,
) -> dict[str, dict]:
  """Runs the regimes -> {regime: summary}; writes WORKDIR/compare.json and report.html.

  Every trained regime takes the same steps on the same examples: single-site as the federation
  does, centralised all sites' steps in one place.

  Args:
    config: the values that all regimes share.
    workdir: one folder a regime is made in it.
    regimes: rows of PRESETS, `api:MODEL` or `api`.
    reporter: shows progress.
    overrides: flat keys from the command line, see `regime_config`.

  Raises:
    InputError: as `run`, or an unknown regime; before the first one starts.
  """
  if not regimes:
    raise InputError(f'--regimes is empty: a list of {", ".join(PRESETS)}, api:MODEL is allowed')
  chosen = dict(regime_row(config, regime, overrides or {}) for regime in regimes)
  _check_budget(chosen.values())
  foreign = sorted(
    name for name in ({path.name for path in workdir.iterdir()} if workdir.is_dir() else ())
    if name not in (*PRESETS, 'compare.json', page.FILE) and not name.startswith('api_'))
  if foreign:
    raise InputError(f'--workdir={workdir}: holds {foreign[0]!r}, which is no part of a comparison')
  for row in chosen.values():
    writer.check_workdir(workdir / row.folder, row.settings, row.harmless)
  # Once a learner; all of it before anything runs, so that mistakes show first.
  data = {}
  for row in chosen.values():
    if row.config.fed.learner not in data:
      with reporter.live():
        data[row.config.fed.learner] = load_data(row.config, reporter)
  for regime, row in chosen.items():
    if regime.startswith('api:'):
      api_run.plan(row.config, data[row.config.fed.learner])
  rows = {}
  for regime, row in chosen.items():
    reporter.say(f'regime {regime}')
    rows[regime] = row.run(
      row.config, workdir / row.folder, reporter, data[row.config.fed.learner])
  writer.write_json(workdir / 'compare.json', rows)
  page.write_report(
    workdir / page.FILE, workdir.resolve().name,
    {regime: workdir / row.folder for regime, row in chosen.items()},
    examples=config.report.examples)
  first = next(iter(rows.values()))
  shown = with_global(rows)
  reporter.say(compare_table(shown, first['sites'], first['external']))
  for table in relation_tables(shown, first['sites'], first['external']):
    reporter.say(table)
  return rows


def define(values: flags.FlagValues) -> None:
  flags.DEFINE_string('workdir', None, 'Folder of the comparison.', flag_values=values)
  flags.DEFINE_list(
    'regimes', list(REGIMES), 'Rows of PRESETS in configs/base.py, or api:MODEL.',
    flag_values=values)


def main(argv: list[str]) -> int:
  def body():
    # Checked per regime: the config's own preset need not be among them.
    config, values, overrides = parse(argv, define, check=False)
    if not values.workdir:
      raise InputError('--workdir is missing: name a folder, such as --workdir=runs/compare')
    set_up()
    compare(config, Path(values.workdir), values.regimes, Reporter(), overrides)

  return guarded(body)


if __name__ == '__main__':
  sys.exit(main(sys.argv))

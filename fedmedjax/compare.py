"""Runs several regimes of one configuration with equal local steps and tabulates them.

    python -m fedmedjax.compare --config=configs/quickstart.py --workdir=runs/compare

Each regime is a run of its own in WORKDIR/REGIME, so a stopped comparison resumes.
"""

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from configs.base import PRESETS
from fedmedjax import writer
from fedmedjax.config import choose_preset, leaves, parse, validate
from fedmedjax.experiment import load_data
from fedmedjax.main import guarded, set_up
from fedmedjax.progress import Reporter
from fedmedjax.report import compare_table
from fedmedjax.run import run
from fedmedjax.types import InputError

REGIMES = ('zero_shot', 'single_site', 'centralised', 'fed_medlora', 'fed_medlora_plus')


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


def compare(
  config: ConfigDict,
  workdir: Path,
  regimes: Sequence[str],
  reporter: Reporter,
  overrides: dict[str, Any] | None = None,
) -> dict[str, dict]:
  """Runs the regimes -> {regime: summary}; writes WORKDIR/compare.json.

  Every trained regime takes the same steps on the same examples: single-site as the federation
  does, centralised all sites' steps in one place.

  Args:
    config: the values that all regimes share.
    workdir: one folder a regime is made in it.
    regimes: rows of PRESETS.
    reporter: shows progress.
    overrides: flat keys from the command line, see `regime_config`.

  Raises:
    InputError: as `run`, or an unknown regime; before the first one starts.
  """
  unknown = sorted(set(regimes) - set(PRESETS))
  if unknown or not regimes:
    raise InputError(f'--regimes={",".join(regimes)}: a list of {", ".join(PRESETS)} is allowed')
  configs = {regime: regime_config(config, regime, overrides or {}) for regime in regimes}
  foreign = sorted(
    {path.name for path in workdir.iterdir()} - {*PRESETS, 'compare.json'}
    if workdir.is_dir() else ())
  if foreign:
    raise InputError(f'--workdir={workdir}: holds {foreign[0]!r}, which is no part of a comparison')
  for regime, chosen in configs.items():
    writer.check_workdir(workdir / regime, writer.plain(leaves(chosen.to_dict())))
  # Once a learner; all of it before anything runs, so that mistakes show first.
  data = {}
  for chosen in configs.values():
    if chosen.fed.learner not in data:
      with reporter.live():
        data[chosen.fed.learner] = load_data(chosen, reporter)
  rows = {}
  for regime, chosen in configs.items():
    reporter.say(f'regime {regime}')
    rows[regime] = run(chosen, workdir / regime, reporter, data[chosen.fed.learner])
  writer.write_json(workdir / 'compare.json', rows)
  first = next(iter(rows.values()))
  reporter.say(compare_table(rows, first['sites'], first['external']))
  return rows


def define(values: flags.FlagValues) -> None:
  flags.DEFINE_string('workdir', None, 'Folder of the comparison.', flag_values=values)
  flags.DEFINE_list(
    'regimes', list(REGIMES), 'Rows of PRESETS in configs/base.py.', flag_values=values)


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

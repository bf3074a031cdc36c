"""Every method in every kind of heterogeneity and damage, over ten seeds, as tables.

    python scripts/ablation.py --output=runs/ablation
      [--presets=fed_medlora,scaffold] [--settings=iid,types] [--seeds=0,1,2]

A run is a word tagger of five sites (configs/ablation.py, or --config of your own); a figure is its
typed strict F1. Without --presets and --settings, every preset that trains a LoRA is run in all
settings of heterogeneity, then four regimes with more and less data and sites. The folder gets
results.jsonl, a line a run, which the same command continues, and table.md.
"""

import os
import sys
import time
from pathlib import Path

# Before numpy: LAPACK's threads wait for each other so long that FlexLoRA takes ten times as long.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

from absl import flags

from fedmedjax.experiment.command_line import parse
from fedmedjax.runtime.cli import guarded, set_up
from fedmedjax.types import InputError


def define(values: flags.FlagValues) -> None:
  flags.DEFINE_string('output', None, 'Folder of the results.', flag_values=values)
  flags.DEFINE_list('presets', [], 'Rows of PRESETS; none = all.', flag_values=values)
  flags.DEFINE_list('settings', [], 'Settings; none = all.', flag_values=values)
  flags.DEFINE_list('seeds', [str(seed) for seed in range(10)], 'Seeds.', flag_values=values)


def main(argv: list[str]) -> int:
  def body():
    given = any(word.lstrip('-').split('=')[0] == 'config' for word in argv[1:])
    default = [] if given else ['--config=fedmedjax:ablation']
    config, values, _ = parse([argv[0], *default, *argv[1:]], define)
    if not values.output:
      raise InputError('--output is missing: name a folder, such as --output=runs/ablation')
    if not all(seed.isascii() and seed.isdigit() for seed in values.seeds):
      raise InputError(f'--seeds={",".join(values.seeds)}: integers >= 0 are allowed')
    # Imported here since they take seconds: --help and mistakes are answered before.
    from fedmedjax.compare import ablation
    from fedmedjax.experiment.presets import trained_presets
    from fedmedjax.runtime.progress import Reporter
    set_up()
    begun, folder, reporter = time.monotonic(), Path(values.output), Reporter()
    presets, settings = values.presets, values.settings
    blocks = [(presets or trained_presets(), settings or tuple(ablation.SETTINGS))]
    if not presets and not settings:
      blocks.append((ablation.SCALED, tuple(ablation.SCALES)))
    seeds, rows = [int(seed) for seed in values.seeds], []
    for chosen, places in blocks:
      rows += ablation.ablation(config, folder, chosen, places, seeds, reporter)
    reporter.say_unwrapped(ablation.write_tables(folder, rows, blocks))
    reporter.say(
      f'{len(rows)} runs; {time.monotonic() - begun:.0f} s in this call; '
      f'{folder / ablation.TABLE}')

  return guarded(body)


if __name__ == '__main__':
  sys.exit(main(sys.argv))

"""Seconds and bytes of a federated round against sites, chunk and unlike sizes.

    python scripts/bench_sites.py [--sites=1,8,32,100,1000] [--repeats=3] [--out=FILE.json]
      [--plot=FILE.svg] [--site=maccrobat2020] [--model=width_256] [--batch=4 --steps=2]
      [--chunk=1] [--chunks=1,2,4,8,0] [--skews=0,0.5,1,1.5] [--loop_sites=100] [--dry_run]

The sentences of one cohort are dealt out to so many sites. Their compiled round (host packing
included, compilation not) is timed in turns with

    ours_loop  the same steps in a Python loop, a compiled call a site
    peer_peft  torch and PEFT: the same weights, examples and steps, padded to the longest

whose losses must be ours to 1e-3 (bfloat16: 1e-2). Beyond --loop_sites both loops do that many
sites, and their seconds are scaled up and called so: peer_peft_scaled_from_100_sites. Chunks and
skews are measured at --part_sites sites; with a skew e, site k has a share proportional to k^-e of
the sentences, and each takes one pass over its own. Peak bytes are the compiler's count of the
round's program.
--out is written after every number of sites, after the chunks and after the skews; the same
command, or one that asks for more, goes on after what the file holds, on the same kind of machine.
--dry_run only lowers the round of each number of sites, for a --model of shapes; the bytes it tells
are the memory planner's estimate.
--plot needs nothing else than --out holds: with --redraw=FILE.json nothing is measured.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from rich.console import Console

from benchmarks import inputs, interleaved, scaling_plot, site_rounds
from fedmedjax.experiment.build import load_data
from fedmedjax.runtime.cli import guarded, read_flags
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store.files import read_json
from fedmedjax.types import InputError

QUIET = Reporter(Console(quiet=True))
# Flags that make measurements comparable.
_WORK = (
  'model', 'tokenizer', 'site', 'task', 'batch', 'steps', 'max_length', 'notes', 'dtype', 'chunk',
  'part_sites', 'skew_chunk', 'loop_sites', 'threads')


def settings(values: flags.FlagValues, sites: int, chunk: int) -> ConfigDict:
  return inputs.configure(
    values.site, values.task, batch_size=values.batch, steps=values.steps, sites=sites,
    data__max_length=values.max_length, data__synthetic_notes=values.notes,
    model__dtype=values.dtype, fed__chunk=chunk)


def timed(name: str, timing: interleaved.Timing) -> dict[str, Any]:
  """The entries of a row: median, and all repeats."""
  return {
    f'{name}_seconds_per_round': statistics.median(timing.seconds),
    f'{name}_seconds_per_round_range': [min(timing.seconds), max(timing.seconds)]}


def by_sites(model: inputs.Model, values: flags.FlagValues, count: int) -> dict[str, Any]:
  """The race at `count` sites -> entries of the file with the suffix _N_sites."""
  config = settings(values, count, values.chunk)
  one = site_rounds.federation(config, load_data(config, QUIET, model.base))
  ours, done = site_rounds.compiled(one), min(count, values.loop_sites)
  suffix = '' if done == count else f'_scaled_from_{done}_sites'
  entrants = {'ours': ours.run, f'ours_loop{suffix}': site_rounds.python_loop(one, done)}
  if values.peer:
    entrants[f'peer_peft{suffix}'] = site_rounds.peft_loop(
      one, site_rounds.tuned(one, model), done)
  timings = {
    name: timing if name == 'ours' else timing._replace(
      seconds=tuple(seconds * count / done for seconds in timing.seconds))
    for name, timing in interleaved.measure(
      entrants, values.repeats, partial(
        site_rounds.check_losses, tolerance=interleaved.TOLERANCES[values.dtype])).items()}
  quantities = {
    'seconds_per_round': lambda seconds: seconds,
    'seconds_per_site': lambda seconds: seconds / count}
  interleaved.show(
    f'a round of {count} sites, {values.steps} steps each, {model.base.name}', timings, quantities)
  return interleaved.found(timings, quantities, f'_{count}_sites') | {
    f'ours_peak_bytes_{count}_sites': ours.peak_bytes()}


def sites_row(found: dict[str, Any], count: int) -> dict[str, Any]:
  """Of these entries what is drawn, without scale and suffix in the keys."""
  end, row = f'_seconds_per_round_{count}_sites', {'sites': count}
  for key, value in found.items():
    if key.endswith(end):
      name, _, measured = key.removesuffix(end).partition('_scaled_from_')
      row[f'{name}_seconds_per_round'] = value
      if measured:
        row['loops_scaled_from_sites'] = int(measured.removesuffix('_sites'))
  return row | {'ours_peak_bytes': found[f'ours_peak_bytes_{count}_sites']}


def by_chunk(
  model: inputs.Model, values: flags.FlagValues, wanted: Sequence[str]
) -> list[dict[str, Any]]:
  """The same round with other numbers of sites computed at once, all in turns."""
  chunks = [int(chunk) for chunk in wanted]
  config = settings(values, values.part_sites, 1)
  data = load_data(config, QUIET, model.base)
  rounds = {
    chunk: site_rounds.compiled(site_rounds.federation(
      settings(values, values.part_sites, chunk), data)) for chunk in chunks}
  first = f'ours_chunk_{chunks[0]}'
  timings = interleaved.measure(
    {f'ours_chunk_{chunk}': one.run for chunk, one in rounds.items()}, values.repeats,
    partial(site_rounds.check_losses, ours=first, tolerance=interleaved.TOLERANCES[values.dtype]))
  return [
    {'chunk': chunk, 'sites': values.part_sites, 'ours_peak_bytes': one.peak_bytes(),
     **timed('ours', timings[f'ours_chunk_{chunk}'])}
    for chunk, one in rounds.items()]


def by_skew(
  model: inputs.Model, values: flags.FlagValues, wanted: Sequence[str]
) -> list[dict[str, Any]]:
  """One pass of power-law sites over the same sentences, in chunks, all exponents in turns."""
  rows, entrants = [], {}
  for exponent in map(float, wanted):
    config = settings(values, values.part_sites, values.skew_chunk)
    config.data.partition.update(kind='quantity', strength=exponent)
    config.fed.update(local_steps=0, local_epochs=1)
    one = site_rounds.federation(config, load_data(config, QUIET, model.base))
    steps, laid_out = one.turn.steps, one.study.site_map(values.skew_chunk).laid_out(one.turn.steps)
    rows.append({
      'skew_exponent': exponent, 'sites': len(steps), 'chunk': values.skew_chunk,
      'local_steps': int(steps.sum()), 'longest_steps': int(steps.max()),
      'useful_step_share': float(steps.sum() / laid_out),
      'padded_useful_step_share': float(steps.mean() / steps.max())})
    entrants[f'ours_skew_{exponent}'] = site_rounds.compiled(one).run
  timings = interleaved.measure(entrants, values.repeats)
  return [
    row | timed('ours', timings[name]) for row, name in zip(rows, entrants, strict=True)]


def dry_run(values: flags.FlagValues) -> dict[str, Any]:
  """Lowers the round of each number of sites for abstract weights -> entries of the file."""
  model, found = inputs.load(
    values.model, values.dtype, tokenizer=values.tokenizer, abstract=True), {'dry_run': True}
  for count in map(int, values.sites):
    config = settings(values, count, values.chunk)
    needs = site_rounds.dry_run(
      site_rounds.federation(config, load_data(config, QUIET, model.base)))
    found |= {f'{key}_{count}_sites': value for key, value in needs.items()}
  return found


def begun(values: flags.FlagValues, machine: dict[str, Any] | None = None) -> dict[str, Any]:
  """What --out holds of this work already.

  Raises InputError when it holds something else, or was measured on another `machine`, see
  `interleaved.machine`.
  """
  settings = {name: values[name].value for name in _WORK}
  path = Path(values.out or '')
  if not path.is_file():
    return {'settings': settings, 'by_sites': [], 'by_chunk': [], 'by_skew': []}
  found = read_json(path)
  held = found.get('settings', {}) if isinstance(found, dict) else {}
  for name, value in settings.items():
    if name not in held or held[name] != value:
      raise InputError(
        f'--out={values.out}: was measured with --{name}={held.get(name)!r}, this command has '
        f'{value!r}; name another file')
  if machine and found.get('machine') != machine:
    raise InputError(
      f'--out={values.out}: was measured on {found.get("machine")}, this is {machine}; name '
      'another file')
  return found


def bench(values: flags.FlagValues, threads: int) -> dict[str, Any]:
  """Measures what --out does not hold yet -> all that it then holds."""
  found = begun(values, interleaved.machine(threads)['machine'])
  model = inputs.load(values.model, values.dtype, tokenizer=values.tokenizer)
  how = {'repeats': values.repeats, 'commit': interleaved.commit()}
  for count in map(int, values.sites):
    if count not in [row['sites'] for row in found['by_sites']]:
      entries = by_sites(model, values, count)
      rows = sorted([*found['by_sites'], sites_row(entries, count) | how], key=lambda r: r['sites'])
      found |= entries | {'by_sites': rows}
      interleaved.write(values.out, found, threads)
  for key, asked, measured, of in (
      ('by_chunk', values.chunks, by_chunk, 'chunk'),
      ('by_skew', values.skews, by_skew, 'skew_exponent')):
    held = [row[of] for row in found[key]]
    if missing := [one for one in asked if float(one) not in held]:
      found[key] = sorted(
        [*found[key], *(row | how for row in measured(model, values, missing))],
        key=lambda row, of=of: row[of])
      interleaved.write(values.out, found, threads)
  for key in ('by_sites', 'by_chunk', 'by_skew'):
    if found[key]:
      scaling_plot.show_rows(key, found[key])
  return found


def define(values: flags.FlagValues) -> None:
  inputs.define_flags(values, batch=4)
  values.set_default('model', 'width_256')
  interleaved.define_flags(values, repeats=3)
  flags.DEFINE_integer('steps', 2, 'Local steps of a site.', lower_bound=1, flag_values=values)
  flags.DEFINE_integer(
    'notes', 0, 'Training notes of a synthetic cohort; 0 = as many as it has.', lower_bound=0,
    flag_values=values)
  flags.DEFINE_list('sites', ['1', '8', '32', '100', '1000'], 'Numbers of sites.',
                    flag_values=values)
  flags.DEFINE_integer(
    'chunk', 1, 'As config.fed.chunk, for --sites.', lower_bound=0, flag_values=values)
  flags.DEFINE_list('chunks', ['1', '2', '4', '8', '0'], "Chunks compared; '' = none.",
                    flag_values=values)
  flags.DEFINE_list('skews', ['0', '0.5', '1', '1.5'], "Exponents compared; '' = none.",
                    flag_values=values)
  flags.DEFINE_integer(
    'part_sites', 64, 'Sites for --chunks and --skews.', lower_bound=2, flag_values=values)
  flags.DEFINE_integer('skew_chunk', 8, 'Chunk for --skews.', lower_bound=0, flag_values=values)
  flags.DEFINE_integer(
    'loop_sites', 100, 'Sites that the loops do at most.', lower_bound=1, flag_values=values)
  flags.DEFINE_bool('peer', True, 'Run the PEFT loop, too.', flag_values=values)
  flags.DEFINE_string('plot', None, 'SVG file for the four curves.', flag_values=values)
  flags.DEFINE_string('redraw', None, 'What --out wrote, to be drawn only.', flag_values=values)


def check_flags(values: flags.FlagValues) -> None:
  """Raises InputError before anything is measured."""
  interleaved.check_out(values.out)
  if not values.dry_run:
    begun(values)
  elif values.out and Path(values.out).exists():
    raise InputError(f'--out={values.out}: is there already; a dry run takes another name')
  if values.plot and not Path(values.plot).absolute().parent.is_dir():
    raise InputError(f'--plot={values.plot}: its folder is not there')
  if values.redraw and not (values.plot and Path(values.redraw).is_file()):
    raise InputError(f'--redraw={values.redraw}: a file that --out wrote, and --plot, are needed')
  for flag, least in (('sites', 1), ('chunks', 0)):
    for count in values[flag].value:
      if not (count.isdigit() and int(count) >= least):
        raise InputError(f'--{flag}={count}: integers >= {least} are allowed')
  for exponent in values.skews:
    if not exponent.replace('.', '', 1).isdigit():
      raise InputError(f'--skews={exponent}: numbers >= 0 are allowed')


def main(argv: list[str]) -> int:
  def body():
    values = read_flags(argv, define)
    check_flags(values)
    if values.redraw:
      found = json.loads(Path(values.redraw).read_text())
    else:
      threads = interleaved.pin_threads(values.threads)
      if values.dry_run:
        return interleaved.write(values.out, dry_run(values), threads)
      found = bench(values, threads)
    if values.plot:
      scaling_plot.draw(found, Path(values.plot))

  return guarded(body)


if __name__ == '__main__':
  sys.exit(main(sys.argv))

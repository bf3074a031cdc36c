"""The last lines of a run: where its files are, and the commands that go on from here."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from fedmedjax.report.html import FILE
from fedmedjax.report.measures import asks_text
from fedmedjax.runtime.phrases import many

# Of so few rounds nobody should take what an adapter finds for what the method can do.
_FEW, _MORE = 2, 10


def next_steps(workdir: Path, summary: dict, learner: str, arguments: Sequence[str]) -> list[str]:
  """What to do with a finished run, a line each.

  Args:
    workdir: of the run.
    summary: its summary.json.
    learner: config.fed.learner.
    arguments: of the command line that made the configuration, --config first.
  """
  lines = [('report', str(workdir / FILE))]
  compare = [
    'fedmedjax.compare', *_without_preset(arguments), f'--workdir={_beside(workdir, "compare")}']
  if learner == 'bert':
    lines += [
      ('model', f'{workdir / "model"}, which transformers loads; fedmedjax.predict reads adapters')]
    compare.append('--regimes=fed_bert,zero_shot')
  elif learner == 'tagger':
    lines += [('adapter', f'{workdir / "adapter"}, of a word tagger; fedmedjax.predict reads those '
                          'of language models')]
    compare.append('--regimes=single_site,centralised,fed_medlora,fed_medlora_plus')
  elif not summary['rounds']:
    lines += [
      ('adapter', 'none: nothing was trained'),
      ('train', _command([
        'fedmedjax.main', *_without_preset(arguments), '--config.fed.preset=fed_medlora_plus',
        f'--workdir={_beside(workdir, "trained")}']))]
  else:
    lines += _adapter_lines(workdir, summary)
    if summary['rounds'] <= _FEW and any('ner' in tasks for tasks in summary['scores'].values()):
      lines += [('longer', (
        f'{many(summary["rounds"], "round")} of training only show how it works: much that it '
        'finds is wrong. More rounds: ') + _command([
          'fedmedjax.main', *_without(arguments, 'fed.rounds'), f'--config.fed.rounds={_MORE}',
          f'--workdir={_beside(workdir, "longer")}']))]
  lines.append(('compare', _command(compare)))
  width = max(len(name) for name, _ in lines)
  return ['Next:', *(f'  {name:<{width}}  {text}' for name, text in lines)]


def _adapter_lines(workdir: Path, summary: dict) -> list[tuple[str, str]]:
  folder = workdir / 'adapter'
  found = sorted(path.parent for path in folder.rglob('adapter_config.json'))
  own = [path.name for path in found if path not in (folder, folder / 'global')]
  # The one for all sites, else the first site's; gone only if somebody took them away.
  chosen = [*(path for path in (folder, folder / 'global') if path in found), *found, folder][0]
  words = f'{folder}, one a site: {", ".join(own)}' if own else str(folder)
  if asks_text(summary):
    return [('adapter', f"{words}, in PEFT's format; fedmedjax.predict annotates notes only")]
  if not any('ner' in tasks for tasks in summary['scores'].values()):
    return [('adapter', words), (
      'predict', "takes an adapter that was trained on entities, too: config.data.tasks=('ner', "
      "'re')")]
  return [('adapter', words), ('predict', _command([
    'fedmedjax.predict', f'--adapter={chosen}', '--input=NOTES',
    f'--output={_beside(workdir, "annotated")}']))]


def _command(words: Sequence[str]) -> str:
  return f'python -m {shlex.join(words)}'


def _beside(workdir: Path, name: str) -> Path:
  """A folder that no run has, next to the run's."""
  place = workdir.resolve() if workdir.name in ('', '..') else workdir
  return place.parent / f'{place.name}_{name}'


def _without_preset(arguments: Sequence[str]) -> list[str]:
  """The configuration without its row of presets, which other commands choose themselves."""
  return _without(arguments, 'fed.preset')


def _without(arguments: Sequence[str], key: str) -> list[str]:
  return [word for word in arguments if not word.startswith(f'--config.{key}=')]

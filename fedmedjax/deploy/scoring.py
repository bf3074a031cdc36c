"""A site's scores on its own test notes, computed and reported where the notes are.

WORKDIR/scored has the files of a run (docs/files.md): predictions, summary.json, report.html.
"""

import hashlib
import time
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from fedmedjax import report, tree
from fedmedjax.data.site import SiteData
from fedmedjax.deploy.keeping import MANIFEST, Keeping
from fedmedjax.eval import evaluate, paired
from fedmedjax.eval.paired import NoteCounts
from fedmedjax.experiment.build import options
from fedmedjax.experiment.config import leaves
from fedmedjax.experiment.deployed import SiteStudy
from fedmedjax.experiment.own_parts import own_parts
from fedmedjax.experiment.stored import quoted_sentences
from fedmedjax.experiment.text_scores import text_metrics
from fedmedjax.report.description import used
from fedmedjax.report.runs import PREDICTIONS, method_name
from fedmedjax.runtime.cli import versions
from fedmedjax.runtime.progress import Reporter
from fedmedjax.store import files, words
from fedmedjax.types import InputError

SCORED = 'scored'
# Key of summary.json: what was scored on what, so that it is not scored again.
_OF = 'scored_of'


class Scored(NamedTuple):
  """What a site knows of its scores."""

  summary: dict[str, Any]         # summary.json
  counts: dict[str, NoteCounts]   # {'ner', 're.modifier', ...: by source}
  examples: int                   # test examples that were asked about


def score_site(
  config: ConfigDict, study: SiteStudy, kept: Keeping, reporter: Reporter
) -> Scored:
  """Answers and scores the site's test notes with its final adapter, or reads what was scored.

  Raises:
    InputError: there is no final adapter yet, or no test notes.
  """
  final, folder = kept.final(study.trainable.adapter), kept.folder / SCORED
  name, site = study.agreed.names[study.index], study.data.sites[study.index]
  if final is None:
    raise InputError(
      f'{kept.folder}: holds no final adapter; the server sends it when all rounds are done')
  if not site.test:
    raise InputError(f'site {name!r}: has no test notes to score')
  adapter, of = final[0], _digest(final[1], site)
  path = folder / 'summary.json'
  if not path.exists() or files.read_json(path).get(_OF) != of:
    _write(config, study, kept, reporter, adapter, of)
  counts = paired.read_answers(folder / PREDICTIONS)['scores'].get(name, {})
  return Scored(files.read_json(path), counts, len(site.test))


def _write(config, study: SiteStudy, kept: Keeping, reporter: Reporter, adapter, of: str) -> None:
  """Scores, and writes the folder; summary.json, which says that it is whole, last but the page."""
  begun, folder = time.monotonic(), kept.folder / SCORED
  name, site = study.agreed.names[study.index], study.data.sites[study.index]
  settings, chosen = leaves(config.to_dict()), options(config)
  (folder / report.FILE).unlink(missing_ok=True)
  with reporter.task(f'decoding {name}', len(site.test)) as advance:
    records = study.trainable.answer(adapter, site, advance)
  text = text_metrics(settings, own_parts(settings), [site])
  scores = {name: evaluate.score(site, [records], chosen.seed, chosen.bootstrap_samples, text)}
  predictions = folder / PREDICTIONS
  files.write_lines(predictions / f'{name}.jsonl', words.kept(records, chosen.text))
  files.write_json(
    predictions / evaluate.COUNTS, files.plain({'scores': evaluate.source_counts(scores)}))
  files.write_json(folder / 'config.json', files.plain(settings))
  files.write_json(folder / report.SITES, used([site], [site], [], [], study.data.schema))
  rounds = {line['round']: line for line in files.read_lines(kept.folder / MANIFEST)
            if line['kind'] == 'local_round'}.values()
  trainable = study.trainable
  summary = {
    'preset': chosen.preset, 'seed': chosen.seed, 'rounds': len(rounds), 'deployed': True,
    'own_parts': chosen.own_parts, 'sites': [name], 'external': [], _OF: of,
    'scores': {name: scores[name].scores}, 'answers': evaluate.answer_counts(scores),
    'test_sources': [len(scores[name].sources)], **evaluate.rates(scores.values()),
    'local_steps': sum(line['steps'] for line in rounds), 'warnings': [],
    'bytes_up': sum(one['bytes'] for line in rounds for one in line['tensors']),
    'bytes_down': sum(line.get('received', 0) for line in rounds),
    # There and back in every round.
    'bytes_full_model': 2 * len(rounds) * trainable.whole_bytes,
    'adapter_parameters': tree.size(trainable.adapter),
    'base_parameters': trainable.whole_parameters, 'wall_seconds': time.monotonic() - begun,
    'versions': versions(), **trainable.summary}
  files.write_json(folder / 'summary.json', files.plain(summary))
  report.write_report(
    folder / report.FILE, f'{name}, {method_name(summary)}', {method_name(summary): folder},
    examples=quoted_sentences(config))


def _digest(adapter: bytes, site: SiteData) -> str:
  """Of an adapter and the test notes that it is scored on."""
  content = hashlib.sha256(adapter)
  for part in site.tasks:
    content.update(repr((part.ask.task, part.test)).encode())
  return content.hexdigest()[:32]

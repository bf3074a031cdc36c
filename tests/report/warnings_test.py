"""What a run warns of: each threshold from just below and just above, by hand."""

import json

import pytest
from invented_run import entry, invent, line

from fedmedjax.report import terminal
from fedmedjax.report.runs import read_runs
from fedmedjax.report.warnings import warnings


def summary(asked=100, copied=100, unreadable=0, external=(10, 10, 0), **more) -> dict:
  """Of a run whose two sites have half of the answers each."""
  def counts(asked, copied, unreadable):
    return {'asked': asked, 'copied': copied, 'unreadable': unreadable}

  return {
    'preset': 'fed_medlora', 'seed': 3, 'external': ['elsewhere'], 'local_steps': 8,
    'scores': {site: {'ner': entry(0.5)} for site in ('icu', 'ward', 'elsewhere')},
    'answers': {
      'icu': counts(asked // 2, 0, 0), 'ward': counts(asked - asked // 2, copied, unreadable),
      'elsewhere': counts(*external)}} | more


def losses(*rounds) -> list[dict]:
  return [line(n, ('icu', 'ward'), train_loss=list(pair)) for n, pair in enumerate(rounds, 1)]


LEARNT = losses((1.0, 0.8), (0.5, 0.4))


def lost(examples: int, entities: int) -> dict:
  return {'too_long': {'examples': examples, 'of_examples': 1000, 'entities': entities,
                       'of_entities': 500}}


def zero_shot(f1: float, unreadable: int) -> dict:
  return {'zero_shot': {
    'scores': {site: {'ner': entry(f1)} for site in ('icu', 'ward', 'elsewhere')},
    'answers': {'icu': {'asked': 100, 'copied': 3, 'unreadable': unreadable}}}}


@pytest.mark.parametrize('given, lines, words', [
  # Healthy runs: also of an older version, of one round, without training.
  (summary(), LEARNT, []),
  ({key: value for key, value in summary().items() if key != 'answers'}, LEARNT, []),
  (summary(), LEARNT[:1], []), (summary(), [], []), (summary(), losses((None, None)), []),
  # Of 100 answers 20 are just a fifth.
  (summary(unreadable=20), LEARNT, []),
  (summary(unreadable=21), LEARNT, ['21 of 100 answers at the sites are unreadable (21%)']),
  (summary(unreadable=21, local_steps=0), [], ['does not know how an answer is written']),
  # External cohorts are apart: they dilute nothing, and are diluted by nothing.
  (summary(external=(10, 10, 3)), LEARNT, ['3 of 10 answers at the external cohorts']),
  (summary(copied=50), LEARNT, []),
  (summary(copied=49), LEARNT, ['only 49 of 100 answers at the sites copy the words']),
  (summary(copied=9, unreadable=90), LEARNT, ['90 of 100', 'only 9 of 100']),
  (summary(copied=9, unreadable=90, local_steps=0), [], ['90 of 100']),
  # Means of both sites: 0.9 and then 0.899, or 0.9.
  (summary(), losses((1.0, 0.8), (0.9, 0.898)), []),
  (summary(), losses((1.0, 0.8), (2.0, 2.0), (0.9, 0.9)),
   ['was 0.900 in round 1 and is 0.900 in round 3']),
  # The site that took part once says nothing, nor does a loss that is no number.
  (summary(), losses((1.0, 0.1), (0.9, None), (float('nan'), None)), []),
  (summary(), losses((1.0, 0.1), (1.1, None)), ['was 1.000 in round 1 and is 1.100 in round 2']),
  (summary(), [LEARNT[0], LEARNT[1] | {'rising': ['ward']}],
   ['the training loss rose above its start at ward (round 2)']),
  (summary(), [LEARNT[0] | {'quarantined': ['icu']}, LEARNT[1]], ['left out icu (round 1)']),
  # 1 % of 1,000 examples, of 500 entities.
  (summary(**lost(10, 5)), LEARNT, []),
  (summary(**lost(900, 400), local_steps=0), [], []),  # nothing was trained
  (summary(**lost(11, 5)), LEARNT, ['11 of 1,000 examples (1.1%) of the']),
  (summary(**lost(10, 6)), LEARNT, ['6 of 500 entities (1.2%); raise config.data.max_length']),
  # Of F1 0 for another reason nothing is said; nor of F1 above it, however it was answered.
  (summary(**zero_shot(0.0, 20)), LEARNT, []), (summary(**zero_shot(0.001, 100)), LEARNT, []),
  (summary(**zero_shot(0.0, 21)), LEARNT, ['does not follow the format of answers (21 of 100']),
  (summary(zero_shot=None), LEARNT, []),
])
def test_just_below_and_just_above(given, lines, words):
  found = warnings(given, lines)
  assert len(found) == len(words), found
  assert all(word in sentence for word, sentence in zip(words, found, strict=True)), found


def test_all_at_once_on_the_last_screen_and_in_the_report(tmp_path, capsys):
  """A run that failed to learn: its zero-shot columns are left out, all else is said."""
  lines = losses((0.5, 0.5), (0.6, 0.6))
  failed = summary(copied=10, unreadable=90, **lost(940, 470), **zero_shot(0.0, 99))
  failed['warnings'] = warnings(failed, lines)
  assert len(failed['warnings']) == 5
  run = invent(tmp_path / 'run', lines=lines, summary=failed)
  given = json.loads((run / 'summary.json').read_text()) | {
    'copy_rate': 0.1, 'parse_failure_rate': 0.9, 'compile_seconds': 1.0, 'simulated_seconds': 0.0,
    'examples_per_second': 1.0, 'peak_memory_bytes': 1}
  reporter = terminal.Reporter()
  terminal.show(given, reporter, run)
  reporter.repeat_warnings()
  said = ' '.join(capsys.readouterr().out.split())
  assert 'zero-shot strict' not in said and 'copies 0.10 (10 of 100)' in said
  for sentence in failed['warnings']:
    assert said.count(f'warning: fed_medlora, seed 3: {sentence}') == 1
  assert [row.name for row in read_runs({'a': run})] == ['a']
  table = terminal.compare_table({'fed_medlora': given, 'other': given | {
    'answers': summary()['answers']}}, ['icu', 'ward'], ['elsewhere'])
  assert [*table.columns[0].cells] == ['fed_medlora †', 'other'] and '20%' in table.caption

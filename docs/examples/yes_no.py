"""A task of one's own: yes/no questions about the sentences of invented notes.

    python docs/examples/yes_no.py

writes the rows of two hospitals and of a third one to runs/rows/NAME.jsonl. What is done with them:
docs/studies.md, "A task of your own".
"""

import json
from pathlib import Path

import fedmedjax as fm
from fedmedjax.data.sentences import note_sentences
from fedmedjax.data.synthetic.cohorts import generate_cohort

QUESTIONS = {'drug': 'Does it name a drug?', 'test': 'Does it name a test?',
             'problem': 'Does it name a problem?'}
HOSPITALS = {
  'north': 'synthetic_icu', 'south': 'synthetic_clinic', 'east': 'synthetic_external'}


def rows(cohort: str) -> list[dict[str, str]]:
  """As many answers are yes as no; the questions about one note have one source, so they are never
  parted."""
  corpus, found = generate_cohort(cohort, seed=1), []
  for note in (*corpus.train, *corpus.test):
    for start, end in note_sentences(note):
      named = {span.type for span in note.spans if start <= span.start and span.end <= end}
      for here, target in ((True, 'yes'), (False, 'no')):
        kinds = [kind for kind in QUESTIONS if (kind in named) == here]
        if 0 < len(kinds) < len(QUESTIONS):
          question = QUESTIONS[kinds[start % len(kinds)]]
          found.append({
            'input': f'{note.text[start:end]}\n{question}', 'target': target,
            'source': note.name})
  return found


def score(predictions: list[str], targets: list[str]) -> dict[str, float | list[float]]:
  """Two metrics: one number of a site, and one number a row, which gets an interval."""
  asked = [answer for answer, target in zip(predictions, targets, strict=True) if target == 'yes']
  found = sum(answer.strip() == 'yes' for answer in asked)
  return {
    'sensitivity': found / len(asked) if asked else 0.0,
    'readable': [float(answer.strip() in ('yes', 'no')) for answer in predictions]}


def in_python(workdir: str, changes: dict | None = None) -> fm.Results:
  """The same study without files: rows and metric are given as they are."""
  config = fm.load_config('fedmedjax:quickstart:fed_medlora', {
    'data.tasks': ('text',), 'data.external': ('east',),
    'data.prompt': str(Path(__file__).with_suffix('.toml')),
    'eval.metrics': ('accuracy', 'macro_f1')} | (changes or {}))
  sites = [fm.Site(name, rows(cohort)) for name, cohort in HOSPITALS.items()]
  return fm.run(config, workdir, data=sites, metric=score)


if __name__ == '__main__':
  Path('runs/rows').mkdir(parents=True, exist_ok=True)
  for name, cohort in HOSPITALS.items():
    lines = [json.dumps(row) for row in rows(cohort)]
    Path(f'runs/rows/{name}.jsonl').write_text('\n'.join(lines) + '\n')
    print(f'runs/rows/{name}.jsonl: {len(lines)} rows')

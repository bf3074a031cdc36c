"""Solved examples in every prompt of a site: which are drawn, and what leaves training."""

import re
from functools import partial

import pytest

from fedmedjax.data import shots as examples
from fedmedjax.data.site import encode_site
from fedmedjax.data.tokenize import encode_instruction
from fedmedjax.experiment.defaults import get_config
from fedmedjax.experiment.notes import Corpora, encode_sites
from fedmedjax.runtime.progress import Reporter
from fedmedjax.train.fingerprint import _notes
from fedmedjax.types import Document, Example, InputError, Relation, SiteCorpus, Span

END = '¶'
# A sentence that stands in the notes of many.
BOILERPLATE = 'Aspirin as before'


class Letters:
  """A tokenizer with a token for each letter; END is its end token."""

  eos_token_id = ord(END)
  chat_template = None

  def __call__(self, text, add_special_tokens=True):
    read = lambda one: [*map(ord, one)]  # noqa: E731
    return {'input_ids': read(text) if isinstance(text, str) else [*map(read, text)]}


def spelled(tokens) -> str:
  return ''.join(map(chr, tokens))


def note(name: str, *lines: str, kind: str = 'drug') -> Document:
  """A note of a sentence a line: its first word is an entity and its last one the route of it; a
  sentence with 'no' has none."""
  text = '\n'.join(lines)
  spans, links, at = [], [], 0
  for line in lines:
    if 'no' not in line.split():
      last = at + line.rindex(' ') + 1
      links.append(Relation('route', len(spans), len(spans) + 1))
      spans += [Span(at, at + line.index(' '), kind), Span(last, at + len(line), 'modifier')]
    at += len(line) + 1
  return Document(name, text, tuple(spans), tuple(links))


def ward(name: str, kinds: str = 'abcdefgh', types=('drug',), test=()) -> SiteCorpus:
  """A site with a note for each letter, of two sentences each, the second without an entity."""
  return SiteCorpus(name, types, tuple(
    note(f'{name} {x}', f'Drug{x} of {name} once', f'There is no {x}', kind=types[0])
    for x in kinds), tuple(test) or (note(f'{name} test', f'Drugz of {name} daily'),), {},
    {kind: ('route',) for kind in types})


def encoded(
  sites, external=(), parts=(), server=(), shots: int = 2, run_seed: int = 0, tasks=('ner',), **data
):
  """What a study reads of these notes; V is of a note a site."""
  config = get_config('fed_medlora')
  config.seed = run_seed
  config.data.update({
    'shots': shots, 'validation_examples': 4, 'server_validation': 'v' if server else ''} | data)
  encode = partial(
    encode_site, tokenizer=Letters(), tasks=tasks, max_length=config.data.max_length)
  return encode_sites(None, encode, config, Corpora(
    list(sites), list(external), list(parts), None, list(server)), Reporter())


def shown(site, task: int = 0) -> list[str]:
  return [shot.text for shot in site.tasks[task].shots]


def trained(site) -> set[str]:
  """The sentences that a site trains on, and that V has of it, whatever the task."""
  fed = [spelled(one.tokens[1:one.prompt_length]).removesuffix(part.ask.after)
         for part in site.tasks for one in (*part.train, *part.validation)]
  return {re.sub('<.*?>', '', text) for text in fed} | {
    one.text for part in site.tasks for one in (*part.solved, *part.watched)}


def test_the_prompt_by_hand():
  """Instruction, then each shot as an example is (input, target, end token), then the heading of
  the question. Every example goes on from there, and its own tokens stay what they were."""
  texts = ('Aspirin by mouth', 'Take codeine')
  shots = tuple(Example('x', 0, text, (span,)) for text, span in zip(
    texts, (Span(0, 7, 'drug'), Span(5, 12, 'drug')), strict=True))
  corpus = ward('ward')
  plain, = encode_site(corpus, Letters(), max_length=256).tasks
  part, = encode_site(
    corpus, Letters(), max_length=256, show=lambda name, form, solved: shots).tasks
  assert spelled(part.instruction) == (
    '### Task:\nCopy the clinical text word for word and put a tag around every entity, as in:\n'
    '<span class="drug">aspirin</span>\n### Definitions:\ndrug: a medication, by name or by class\n'
    '### Input Text:\n'
    'Aspirin by mouth\n### Output Text:\n<span class="drug">Aspirin</span> by mouth¶'
    '### Input Text:\n'
    'Take codeine\n### Output Text:\nTake <span class="drug">codeine</span>¶'
    '### Input Text:\n')
  assert part.ask.shots[1] == (
    'Take codeine\n### Output Text:\n', 'Take <span class="drug">codeine</span>')
  assert spelled(plain.instruction) == plain.ask.instruction
  for one, before in zip(part.train, plain.train, strict=True):
    assert one.tokens.tolist() == before.tokens.tolist()
  first, *_ = part.test_tokens
  assert spelled(first.tokens[:first.prompt_length]) == '\nDrugz of ward daily\n### Output Text:\n'
  # Of words without a heading of their own the examples follow the start token alone.
  assert spelled(encode_instruction(Letters(), 's', [('in', 'out')])) == f'sinout{END}'


def test_what_is_shown_is_neither_trained_on_nor_held_out():
  """Of all tasks of the site, and also where another note repeats it word for word."""
  repeated = ward('ward')
  repeated = repeated._replace(train=tuple(
    note(one.name, 'Drugx of ward once', f'Heparin since {one.name[-1]}')
    for one in repeated.train))
  none, = encoded([repeated], shots=0, tasks=('ner', 're')).sites
  assert trained(none) >= {'Drugx of ward once', 'Heparin since a'} and not shown(none)
  assert 'shown_examples' not in none.report and none.tasks[0].ask.shots == ()
  site, = encoded([repeated], shots=3, tasks=('ner', 're')).sites
  ner, related = shown(site), shown(site, 1)
  assert len(set(ner)) == len(set(related)) == 3 and ner != related
  assert not trained(site) & {*ner, *related}
  left = {f'Heparin since {x}' for x in 'abcdefgh'} | {'Drugx of ward once'}
  assert trained(site) == left - {*ner, *related}
  # Of each task: every example of a sentence that either of them shows.
  gone = sum(('Drugx' in text) * 8 + ('Heparin' in text) for text in {*ner, *related})
  assert site.report['shown_examples'] == 2 * gone
  assert [shot.main for shot in site.tasks[1].shots] == [Span(0, 7, 'drug') if (
    'Heparin' in text) else Span(0, 5, 'drug') for text in related]


def test_a_tested_sentence_is_shown_nowhere():
  """Neither of the site itself nor of another, nor one of a note that is not drawn for testing."""
  test = [note('t', BOILERPLATE), note('u', 'Drugb of ward once')]
  sites = [ward('ward', 'ab')._replace(train=(
    *ward('ward', 'abc').train, note('ward y', BOILERPLATE), note('ward w', BOILERPLATE))),
    ward('icu', test=test)]
  assert examples.tested_texts(sites) >= {BOILERPLATE, 'Drugb of ward once'}
  row = Document('r', 'One. Two.', (), (), target='yes')
  assert examples.tested_texts([ward('rows', test=[row])]) == {'One. Two.'}
  for seed in range(4):
    first, _ = encoded(sites, shots=1, run_seed=seed).sites
    assert {*shown(first)} <= {'Druga of ward once', 'Drugc of ward once'}
  with pytest.raises(InputError, match='config.data.shots=3: . of its training sentences'):
    encoded(sites, shots=3)


def test_a_cohort_is_shown_what_sites_show_that_annotate_all_its_types():
  """First what nobody trains on. The site of problems alone would teach that no drug is marked."""
  both, drugs, problems = (
    ward('both', types=('drug', 'problem')), ward('drugs'), ward('problems', types=('problem',)))
  cohort = ward('cohort', types=('drug', 'problem'))
  data = encoded([both, drugs, problems], [cohort, ward('fewer')])
  external, fewer = data.external
  assert {*shown(external)} == {*shown(data.sites[0])} and len(shown(external)) == 2
  assert {*shown(fewer)} < {*shown(data.sites[0]), *shown(data.sites[1])} and len(shown(fewer)) == 2
  # Nothing more leaves training for a cohort, and its own notes for training are not looked at.
  alone = encoded([both, drugs, problems])
  for one, other in zip(data.sites, alone.sites, strict=True):
    assert trained(one) == trained(other) and shown(one) == shown(other)
  # The types of its prompt are marked and no others.
  assert all('problem' not in target for _, target in fewer.tasks[0].ask.shots)
  with pytest.raises(InputError, match=(
      "shots=2: nothing can be shown for task 'ner' of site 'cohort', since no site that trains")):
    encoded([drugs, problems], [cohort])
  with pytest.raises(InputError, match='shots=3: 0 of the training sentences of sites that annot'):
    encoded([both], [ward('p', types=('problem',), test=[
      note('p test', 'Drugz of p daily', kind='problem')])], shots=3)
  # The only lender shows a problem and a drug: a cohort of drugs is lent a sentence more.
  mixed = both._replace(train=tuple(
    one._replace(spans=tuple(
      span._replace(type='problem') if span.type == 'drug' and i % 2 else span
      for span in one.spans)) for i, one in enumerate(both.train)))
  for seed in range(6):
    data = encoded([mixed], [ward('fewer')], run_seed=seed)
    lent = set(shown(data.external[0])) - set(shown(data.sites[0]))
    useful = [shot for shot in data.sites[0].tasks[0].shots if shot.entities[0].type == 'drug']
    assert len(lent) == 2 - len(useful) and lent <= trained(data.sites[0])


def test_sites_whose_notes_were_dealt_out_and_the_server_are_lent_some():
  parts = [ward('part_001', 'abcd'), ward('part_002', 'efgh')]
  data = encoded([ward('ward')], [ward('cohort')], parts, [ward('v')._replace(test=())])
  own = {*shown(data.sites[0]), *shown(data.sites[1])}
  assert len(own) == 4 and not own & (trained(data.sites[0]) | trained(data.sites[1]))
  (tested,), (cohort,), (server,) = data.tested, data.external, data.server
  for site in (tested, cohort, server):
    assert len(shown(site)) == 2 and {*shown(site)} <= own
  assert not set(trained(server)) & {*shown(server)} and server.tasks[0].validation
  assert tested.tasks[0].instruction.tolist() != data.sites[0].tasks[0].instruction.tolist()


def test_too_few_or_too_long_ones_are_refused():
  """V has a note; seven are left. A sentence of more tokens than an example may have is not shown,
  and of few sentences drawn for training, some must be left to train on."""
  assert len(shown(encoded([ward('ward')], shots=7).sites[0])) == 7
  with pytest.raises(InputError) as caught:
    encoded([ward('ward')], shots=8)
  assert str(caught.value) == (
    "config.data.shots=8: 7 of its training sentences can be shown for task 'ner' of site 'ward': "
    'those with an answer that are not tested and no longer than config.data.max_length=256; use '
    'fewer, or 0')
  long = ward('ward', 'abc')
  long = long._replace(train=(*long.train, note('ward l', 'Drugl of ward ' + 'x' * 90)))
  with pytest.raises(InputError, match='shots=4: 3 of its .*max_length=120'):
    encoded([long], shots=4, max_length=120, validation_examples=0)
  with pytest.raises(InputError, match='and 1 sentences shown .config.data.shots'):
    encoded([ward('ward', 'a')._replace(train=(note('n', 'Drugx of ward once'),))], shots=1)


def test_the_draw_is_a_function_of_seed_site_and_task():
  """And not of how much is tested, nor of what other sites there are."""
  first = shown(encoded([ward('ward')]).sites[0])
  assert first == shown(encoded([ward('ward'), ward('icu')], [ward('cohort')]).sites[0])
  assert len({tuple(shown(encoded([ward('ward')], run_seed=n).sites[0])) for n in range(5)}) > 2
  one, other = (shown(encoded([ward('ward')], run_seed=n, seed=3).sites[0]) for n in (0, 1))
  assert one == other == shown(encoded([ward('ward')], run_seed=3).sites[0])
  pool = [Example('x', 0, f'Drug {i}', (Span(0, 4, 'drug'),)) for i in range(6)]
  rows = [one._replace(entities=(), target='yes') for one in pool[:4]]
  drawn = partial(examples.draw, tested={'Drug 5'}, count=4, seed=0)
  assert len(drawn('a', 'text', [rows])) == 4 and not drawn('a', 'ner', [[
    one._replace(target=None) for one in rows]])
  # The second pool only where the first is used up.
  found = drawn('a', 'ner', [pool[:3], pool])
  assert {one.text for one in found[:3]} == {f'Drug {i}' for i in range(3)}
  assert found[3] in pool[3:5]
  assert drawn('a', 'ner', [pool], fits=lambda one: one == pool[0]) == (pool[0],)


def test_a_run_notices_that_other_examples_are_shown():
  """Of the fingerprint only the prompts tell, where a cohort is shown others."""
  external, other = (encoded([ward('ward'), ward('icu', kinds)], [ward('cohort')]).external[0]
                     for kinds in ('abcdefgh', 'ijklmnop'))
  assert shown(external) != shown(other)
  changed = {key for key, value in _notes(external).items() if _notes(other)[key] != value}
  assert changed == {'its prompts'}

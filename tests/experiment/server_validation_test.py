"""The server's own validation set: whose notes it is, what is kept apart, and what is refused."""

from functools import partial

import numpy as np
import pytest

from fedmedjax.data.site import Form, read_site
from fedmedjax.data.tasks import ask
from fedmedjax.data.tokenize import TokenExample
from fedmedjax.experiment.config import validate
from fedmedjax.experiment.defaults import get_config
from fedmedjax.experiment.notes import encode_sites, load_corpora, watched_sites
from fedmedjax.runtime.progress import Reporter
from fedmedjax.types import Document, InputError, Relation, SiteCorpus, Span

SUBJECTS = ('Aspirin for the knee', 'Heparin before surgery', 'No insulin was given',
            'Warfarin since spring', 'Lasix twice a day', 'Statins were stopped')


def note(subject: int, name: str = '', kind: str = 'drug') -> Document:
  """A note of one sentence, whose second word is an entity and a route of the first."""
  text = SUBJECTS[subject]
  first, second = text.index(' '), text.index(' ', text.index(' ') + 1)
  return Document(
    name or f'note{subject}', text + '.',
    (Span(0, first, kind), Span(first + 1, second, 'modifier')), (Relation('route', 0, 1),))


def corpus(name: str, train, test=(), kind: str = 'drug', routes: bool = True) -> SiteCorpus:
  return SiteCorpus(
    name, (kind,), tuple(note(i, f'{name} {i}', kind) for i in train),
    tuple(note(i, f'{name} test {i}', kind) for i in test), {},
    {kind: ('route', 'dosage') if routes else ()})


def configured(server='v', **data):
  config = get_config('fed_medlora_peer')
  config.data.update({
    'sites': ('a', 'b'), 'external': ('e',), 'server_validation': server,
    'validation_examples': 2} | data)
  validate(config)
  return config


def given(**more) -> dict:
  return {'a': corpus('a', (0, 1), (2,)), 'b': corpus('b', (3,), (2,)),
          'e': corpus('e', (), (4,)), 'v': corpus('v', (1, 2, 4, 5))} | more


def texts(notes) -> list[str]:
  return [one.text.rstrip('.') for one in notes]


def test_its_notes_are_tested_nowhere_and_trained_on_nowhere():
  """Of the server's 1, 2, 4, 5 the sites test 2 and the cohort 4; of a's 0, 1 the server has 1."""
  found = load_corpora(configured(), given=given())
  server, = found.server
  assert texts(server.train) == [SUBJECTS[1], SUBJECTS[5]] and not server.test
  assert [texts(site.train) for site in found.sites] == [[SUBJECTS[0]], [SUBJECTS[3]]]
  assert server.report['leaked_documents'] == 2
  assert [site.report['leaked_documents'] for site in found.sites] == [1, 0]
  plain = load_corpora(configured(''), given=given())
  assert not plain.server and texts(plain.sites[0].train) == list(SUBJECTS[:2])


def test_it_is_asked_for_what_sites_train():
  """Types that no site has are left out; relations are asked as of an external cohort."""
  mixed = corpus('v', (1, 5))._replace(types=('drug', 'test'), modifiers={
    'drug': ('route', 'duration'), 'test': ('labvalue',)})
  server, = load_corpora(configured(), given=given(v=mixed)).server
  assert server.types == ('drug',)
  assert server.prompted == {'drug': ('dosage', 'route')}
  assert server.modifiers['drug'] == ('route',)


def encode(corpus, **split):
  """As a language model would, with a token for each character."""
  form = Form(
    ask('ner', corpus), np.zeros(4, np.int32), lambda found: (
      [TokenExample(np.arange(len(one.text)), 2) for one in found], {}),
    lambda found: [None] * len(found), 'config.data.max_length=256')
  return read_site(corpus, [form], **split)


def test_sites_then_hold_nothing_out():
  """Five training notes each, a share of two fifths: with the server's V all of them train, and of
  its own five notes two are drawn."""
  several = dict(
    a=corpus('a', range(5)), b=corpus('b', range(5)), e=corpus('e', (), ()),
    v=corpus('v', range(5)))
  several = {name: one._replace(
    train=tuple(d._replace(name=f'{d.name}!', text=f'{name} {d.text}', spans=tuple(
      Span(s.start + 2, s.end + 2, s.type) for s in d.spans)) for d in one.train),
    test=(note(5, f'{name} test'),)) for name, one in several.items()}

  def counts(server):
    config = configured(server, validation_share=0.4)
    data = encode_sites(
      None, encode, config, load_corpora(config, given=several), Reporter())
    # While they train, those with validation notes are asked about them.
    sites = (*data.sites, *data.server)
    return [site.name for site in watched_sites(sites)], [
      [(len(part.train), len(part.validation)) for part in site.tasks] for site in sites]

  assert counts('') == (['a', 'b'], [[(3, 2)], [(3, 2)]])
  assert counts('v') == (['v'], [[(5, 0)], [(5, 0)], [(0, 2)]])


@pytest.mark.parametrize('server, data, message', [
  ('a', {}, "config.data.server_validation='a': a site that trains"),
  ('e', {}, 'a site that is tested (config.data.external)'),
  ('v', {'validation_examples': 0}, "leaves nothing of config.data.server_validation='v'"),
  ('nowhere', {}, "config.data.server_validation: unknown site 'nowhere'; allowed are"),
  ('notes/v', {}, "unknown site 'notes/v'"),
  ('synthetic_external', {}, 'it has no training note'),
  ('mine', {'folders': (dict(name='mine', path='/nowhere/v', format='brat', mapping='schema'),)},
   '/nowhere/v'),
  ('tested', {}, 'each of its 1 training notes has the source, the text or nearly'),
  ('other', {}, 'it annotates problem, and the sites that train drug; a common type is needed'),
  ('same', {}, "site 'a': each of its 2 training notes has the source, the text or nearly the "
   'text of a test note or a note of V'),
])
def test_what_is_no_validation_set_is_refused_in_one_line(server, data, message):
  with pytest.raises(InputError) as error:
    load_corpora(configured(server, **data), given=given(
      tested=corpus('tested', (2,)), other=corpus('other', (5,), kind='problem'),
      same=corpus('same', (0, 1))))
  assert message in str(error.value) and '\n' not in str(error.value)


def test_notes_without_an_example_that_fits_are_refused():
  long = partial(encode, tests=False, validates=True, validation_examples=2)
  with pytest.raises(InputError, match="'v': none of its 2 notes gives a validation example"):
    read_site(corpus('v', (1, 5)), [Form(
      ask('ner', corpus('v', (1,))), np.zeros(4, np.int32), lambda found: ([], {}),
      lambda found: [], 'config.data.max_length=8')], tests=False, validates=True,
      validation_examples=2)
  assert len(long(corpus('v', (1, 5))).tasks[0].validation) == 2


def test_a_folder_of_the_servers_is_all_of_it_unless_it_says_otherwise(tmp_path):
  """Ten notes; a test_share of .2 takes two from V."""
  for i in range(10):
    word = 'abcdefghij'[i] * 6
    (tmp_path / f'n{i}.txt').write_text(f'{word} was given.')
    (tmp_path / f'n{i}.ann').write_text(f'T1\tdrug 0 6\t{word}\n')
  mapping = tmp_path / 'map.toml'
  mapping.write_text('[entities]\ndrug = "drug"\n')
  folder = dict(name='v', path=str(tmp_path), format='brat', mapping=str(mapping))
  sizes = []
  for entry in (folder, folder | {'test_share': 0.2}):
    notes = given()
    del notes['v']
    server, = load_corpora(configured(folders=(entry,)), given=notes).server
    sizes.append(len(server.train))
  assert sizes == [10, 8]

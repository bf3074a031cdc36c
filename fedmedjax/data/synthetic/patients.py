"""Invented patients: one draw of a scenario, coherent and free of contradictions."""

import functools
import random
import re
from collections.abc import Iterable
from typing import NamedTuple

from fedmedjax.data.synthetic.vocabulary import entries, read, split

# Role -> the entity type of its names, and that of their partners (after a '>') where it has some.
ROLES = {
  'dx': ('problem',), 'main': ('problem',), 'sx': ('problem',), 'neg': ('problem',),
  'sign': ('problem',), 'nsign': ('problem',), 'pmh': ('problem',), 'fh': ('problem',),
  'ruled': ('problem',), 'warn': ('problem',),
  'ddx': ('problem', 'test'), 'comp': ('problem', 'test'),
  'lab': ('test',), 'normal': ('test',), 'vital': ('test',), 'order': ('test',),
  'img': ('test', 'problem'), 'clear': ('test', 'problem'),
  'rx': ('drug', 'problem'), 'drip': ('drug', 'problem'), 'home': ('drug', 'problem'),
  'ppx': ('drug',),
  # Parts of the above: ways to give oxygen; drugs that treat the main problem, act at once, are
  # not for the vein, can be had without a prescription, would be stopped in hospital.
  'air': ('treatment', 'problem'),
  'mrx': ('drug', 'problem'), 'erx': ('drug', 'problem'), 'orx': ('drug', 'problem'),
  'otc': ('drug', 'problem'), 'held': ('drug', 'problem'),
  'proc': ('treatment', 'problem'), 'care': ('treatment', 'problem'),
  'psh': ('treatment',), 'advice': ('treatment',),
}
_ABSENT = ('neg', 'nsign', 'ruled', 'clear')
# Roles of problems that the patient has: 'fh' and 'warn' do not tell, 'ddx' only suspects.
_PRESENT = ('dx', 'sx', 'sign', 'pmh', 'comp', 'img', 'rx', 'drip', 'proc', 'care')
_ITEM = re.compile(r'(?P<key>[^@?]+?)\s*(?:@(?P<place>[^?]+?))?(?P<direction>[-+=])?'
                   r'\s*(?:\?(?P<sex>[FM]))?')


class Item(NamedTuple):
  """A name in one of a patient's roles, with the direction of a test's value and its partners."""

  key: str
  direction: str = '='
  partners: tuple['Item', ...] = ()


class Patient(NamedTuple):
  """An invented patient: names by role, body locations by name, words for the frames."""

  roles: dict[str, tuple[Item, ...]]
  places: dict[str, str]
  words: dict[str, str]
  traits: frozenset[str]  # 'in' or 'out' (patient), 'sudden', 'acute' or 'chronic', 'old', 'F', 'M'


@functools.cache
def scenarios(cohort: str) -> dict[str, dict]:
  """The scenarios of a cohort, by name, with the defaults of common.toml filled in."""
  common, chosen = read('common'), {}
  for setting in ('inpatient', 'outpatient'):
    default = common['default'] | common[setting]
    for name, scenario in read(setting).items():
      if cohort in scenario['cohorts'].split():
        chosen[name] = default | scenario
  return chosen


@functools.cache
def _common() -> tuple[dict[str, list[str]], dict[str, str], list[set[str]]]:
  """({chronic problem: home drugs}, {drug or treatment: class}, groups of problems read alike)."""
  common = read('common')
  chronic = {key: split(text, ',') for key, text in common['chronic'].items()}
  classes = {key: name for name, text in common['exclusive'].items() for key in split(text, ',')}
  return chronic, classes, [set(split(text, ',')) for text in common['alike'].values()]


def make_patient(scenario: dict, rng: random.Random) -> Patient:
  """Draws one patient of a scenario, who has only a part of the names that it allows."""
  side, other = rng.choice((('left', 'right'), ('right', 'left')))
  words = {
    'side': side, 'other': other, 'valve': rng.choice(('aortic valve*', 'mitral valve*')),
    'age': str(rng.randint(*scenario['age'])), 'sex': rng.choice(scenario['sex']),
  }
  traits = {scenario['setting'], scenario['pace'], words['sex']}
  if int(words['age']) > 66:
    traits.add('old')
  places = {}
  roles = {role: _items(scenario.get(role, '').format(**words), words['sex'], places)
           for role in ROLES}
  roles['main'] = roles['dx'][:1]
  have = {item.key for item in roles['dx']}
  chronic = [item for item in roles['pmh'] if item.key not in have]
  roles['pmh'] = tuple(rng.sample(chronic, min(len(chronic), 4)))
  for together in (('drip', 'rx'), ('care', 'proc')):
    taken = {}
    for role in together:
      roles[role] = _one_of_each(roles[role], taken, rng)
  roles['home'] = _home(roles, rng)
  roles['mrx'] = tuple(item for item in roles['rx'] if roles['main'][0] in item.partners)
  codes = {item: entries()['drug', item.key].codes for item in roles['rx']}
  roles['orx'] = tuple(item for item in roles['rx'] if codes[item][1] != 'iv')
  roles['erx'] = tuple(item for item in roles['rx'] if codes[item][1] == 'iv'
                       or codes[item][2] == 'once' or codes[item][2].endswith('prn'))
  have |= {item.key for item in roles['pmh']}
  roles['comp'] = tuple(item for item in roles['comp'] if item.key not in have)
  for part, whole in (('held', 'home'), ('otc', 'rx'), ('air', 'care')):
    keys = split(read('common')['part'][part], ',')
    roles[part] = tuple(item for item in roles[whole] if item.key in keys)
  if 'obesity' in {item.key for role in ('dx', 'pmh') for item in roles[role]}:
    roles['vital'] = tuple(item._replace(direction='+') if item.key == 'BMI' else item
                           for item in roles['vital'])
  # What was measured is not ordered as well, and vital signs are told once.
  for role, told in (('lab', ('vital',)), ('order', ('lab', 'normal'))):
    known = {item.key for other in told for item in roles[other]}
    roles[role] = tuple(item for item in roles[role] if item.key not in known)
  return Patient(_without_contradictions(roles), places, words, frozenset(traits))


def _items(text: str, sex: str, places: dict[str, str]) -> tuple[Item, ...]:
  """Reads the notation of inpatient.toml; notes body locations in `places`."""
  items = []
  for pair in text.split(';') if text else ():
    firsts, seconds = ([], [])
    for names, into in zip(pair.split('>'), (firsts, seconds), strict=False):
      for name in split(names, ','):
        parts = _ITEM.fullmatch(name)
        if parts['sex'] in (None, sex):
          into.append(Item(parts['key'], parts['direction'] or '='))
          if parts['place']:
            places[parts['key']] = parts['place']
    items += [item._replace(partners=tuple(seconds)) for item in firsts]
  return tuple(items)


def _one_of_each(items: Iterable[Item], taken: dict, rng: random.Random) -> tuple[Item, ...]:
  """Keeps one item of each class of drugs or treatments that no one would give together."""
  classes = _common()[1]
  kept = []
  for item in rng.sample(list(items), len(items)):
    name = classes.get(item.key, item.key.partition(':')[0])
    if taken.setdefault(name, item.key) == item.key:
      kept.append(item)
  return tuple(kept)


def _home(roles: dict[str, tuple[Item, ...]], rng: random.Random) -> tuple[Item, ...]:
  """The drugs of the chronic problems, at most two each, less what is new with this visit."""
  chronic, classes, _ = _common()
  new = {item.key for role in ('rx', 'drip', 'ppx') for item in roles[role]}
  new = {key.partition(':')[0] for key in new} | {classes.get(key) for key in new} - {None}
  taken, home = {}, []
  for problem in roles['pmh']:
    drugs = [Item(key, partners=(problem,)) for key in chronic.get(problem.key, ())
             if not new & {key, classes.get(key)}]
    home += _one_of_each(drugs, taken, rng)[:2]
  return tuple(home)


def _without_contradictions(roles: dict[str, tuple[Item, ...]]) -> dict[str, tuple[Item, ...]]:
  """Drops findings said to be absent that the patient has, and suspicions that are settled."""
  alike = _common()[2]

  def problems(role):
    for item in roles[role]:
      if ROLES[role][0] == 'problem':
        yield item.key
      else:
        yield from (partner.key for partner in item.partners)

  def spread(keys):
    return keys.union(*(group for group in alike if group & keys))

  settled = spread({key for role in _PRESENT for key in problems(role)})
  for role in _ABSENT:
    kept = []
    for item in roles[role]:
      partners = tuple(partner for partner in item.partners if partner.key not in settled)
      if item.key not in settled and (partners or not item.partners):
        kept.append(item._replace(partners=partners))
    roles[role] = tuple(kept)
  settled |= spread({key for role in _ABSENT for key in problems(role)})
  done = {item.key for item in roles['clear']}  # not ordered once more for a suspicion
  roles['ddx'] = tuple(item for item in roles['ddx'] if item.key not in settled
                       and not done & {partner.key for partner in item.partners})
  return roles

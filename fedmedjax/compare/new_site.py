"""Whether the scenario new_site can be carried out on the notes that were read."""

from collections.abc import Sequence

from fedmedjax.compare.scenarios import Part
from fedmedjax.data.leaks import TextIndex
from fedmedjax.data.sentences import note_sentences
from fedmedjax.data.shots import tested_texts
from fedmedjax.data.split import drawn_sentences
from fedmedjax.data.tasks import ask
from fedmedjax.data.text_task import is_solved
from fedmedjax.experiment.notes import data_seed
from fedmedjax.types import InputError, SiteCorpus


def check_new_site(
  part: Part, sites: Sequence[SiteCorpus], federation: Sequence[SiteCorpus]
) -> None:
  """Checks a part of the scenario new_site before the federation trains for it; other parts pass.

  Args:
    part: of any scenario.
    sites: the part's sites, as read.
    federation: the sites that train in the federation.

  Raises:
    InputError: the federation trains on a note that the new site is tested on, the site has fewer
      sentences than the part trains on, or those that were drawn contain no example of a task, or
      too few that its prompt could show.
  """
  if part.scenario != 'new_site':
    return
  (site,) = sites
  tested = TextIndex(site.test)
  for other in federation:
    if shared := sum(tested.has(note) or tested.nearly_has(note) for note in other.train):
      raise InputError(
        f'--new_site={site.name}: {shared} training notes of {other.name} have the text of one of '
        'its test notes, or nearly; take them out of one')
  number = int(part.label) if part.label.isdigit() else 0
  if not number:
    return
  config = next(iter(part.rows.values())).config
  notes = site.train[:config.data.max_train_notes or None]
  available = sum(len(note_sentences(note)) for note in notes)
  rows = any(note.target is not None for note in notes)
  if number > available:
    raise InputError(
      f'--sentences={number}: the training {"rows" if rows else "notes"} of {site.name!r} '
      f'{"are" if rows else "have"} {available}; fewer, or all, are allowed')
  chosen = drawn_sentences(site.name, notes, number, data_seed(config))
  for task in config.data.tasks:
    asked = ask(task, site)
    examples = [
      example for note in notes for example in asked.find(note)[0]] if asked.types else []
    # A task without a single entity in the site's notes is left out of its training anyway.
    if any(map(is_solved, examples)) and not any(
        (example.document, example.start) in chosen for example in examples):
      raise InputError(
        f'--sentences={number}: those drawn of {site.name!r} with seed {data_seed(config)} hold no '
        f'example of task {task!r}; allow more')
    if (shots := config.data.shots) and any(map(is_solved, examples)):
      known = tested_texts([site])
      possible = {
        example.text for example in examples if is_solved(example) and example.text not in known
        and (example.document, example.start) in chosen}
      if len(possible) < shots or number <= shots * len(config.data.tasks):
        raise InputError(
          f'config.data.shots={shots}: of the --sentences={number} drawn of {site.name!r} '
          f'{len(possible)} can be shown for task {task!r}, and others must be left to train on; '
          'allow more sentences, or show fewer')

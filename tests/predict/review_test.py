"""Checking a note on its page, in headless Chromium: what is saved is what the package reads back.

The page runs in a frame of a page that clicks, selects and presses keys in it, and keeps what it
saves instead of downloading it.
"""

import hashlib
import json
import os
from pathlib import Path

import pytest
from chromium import dumped, looked_at, run_browser

from fedmedjax.data.formats.brat import read_brat
from fedmedjax.data.formats.writers import brat_annotation
from fedmedjax.predict.annotate import Annotation
from fedmedjax.predict.pages import index_page, note_page
from fedmedjax.predict.records import held_document, record_of
from fedmedjax.types import Document, Relation, Span

# Characters beyond 16 bits before and inside of spans; a span over a line's end, which brat writes
# in pieces; one span inside of another; a note of several scripts; markup.
TEXT = ('\U0001fac1 Severe chest\n pain, no fever \U0001f321.\r\nGave \U0001f48a aspirin by mouth '
        'daily & heparin.\nMRT \u6b63\u5e38 <b>today</b>.\n')


def span(words: str, kind: str) -> Span:
  start = TEXT.index(words)
  return Span(start, start + len(words), kind)


PAIN, INNER, FEVER = (span(words, 'problem') for words in ('chest\n pain', 'pain', 'fever'))
ASPIRIN, HEPARIN, TODAY = (
  span(words, kind) for words, kind in (
    ('aspirin', 'drug'), ('heparin', 'test'), ('<b>today</b>', 'test')))
SEVERE, NO, MOUTH = (span(words, kind) for words, kind in (
  ('Severe', 'severity'), ('no', 'negation'), ('by mouth', 'route')))
SPANS = (PAIN, INNER, FEVER, ASPIRIN, HEPARIN, TODAY, SEVERE, NO, MOUTH)
NOTE = Document('ward/a b.txt', TEXT, SPANS, (
  Relation('severity', 0, 6), Relation('severity', 1, 6), Relation('negation', 2, 7),
  Relation('route', 3, 8)))

_DRIVE = '''
<!doctype html><meta charset="utf-8"><body>
<iframe id="waits"></iframe>
<script>
// Chromium dumps this page at its load event. A frame whose document is still open delays that,
// so the dump comes after the last step, however slow the machine is.
const waits = document.querySelector('#waits').contentDocument;
waits.open();
const soon = () => new Promise(done => setTimeout(done, 20));
async function drive(frame) {
  const view = frame.contentWindow, page = frame.contentDocument, blobs = [], found = {};
  const find = id => page.getElementById(id);
  view.URL.createObjectURL = blob => { blobs.push(blob); return 'blob:none'; };
  view.HTMLAnchorElement.prototype.click = function () { blobs.at(-1).name = this.download; };
  const press = (target, key) =>
    target.dispatchEvent(new view.KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
  const act = name => page.querySelector(`[data-do="${name}"]`).click();
  const mark = words => [...page.querySelectorAll('#note mark')].find(
    one => one.textContent === words);
  const set = (id, value) => {
    find(id).value = value;
    find(id).dispatchEvent(new view.Event('change'));
  };
  // Selects words of the note that stand in a single text node or go over several.
  async function select(words) {
    const note = find('note'), at = note.textContent.indexOf(words), range = page.createRange();
    let seen = 0;
    const walk = page.createTreeWalker(note, 4);
    const place = unit => {
      walk.currentNode = note;
      for (seen = 0; walk.nextNode(); seen += walk.currentNode.data.length)
        if (seen + walk.currentNode.data.length >= unit)
          return [walk.currentNode, unit - seen];
    };
    range.setStart(...place(at));
    range.setEnd(...place(at + words.length));
    page.getSelection().removeAllRanges();
    page.getSelection().addRange(range);
    await soon();
  }
  try {
    found.told = page.body.textContent.includes('not checked by anybody');
    found.text = find('note').textContent;
    %s
    found.status = find('status').textContent;
    act('brat');
    act('json');
    found.files = {};
    for (const blob of blobs) found.files[blob.name] = new TextDecoder(
      'utf-8', {ignoreBOM: true}).decode(await blob.arrayBuffer());
    found.wide = page.documentElement.scrollWidth;
  } catch (error) {
    found.error = `${error} ${error.stack}`;
  }
  const said = document.createElement('pre');
  said.textContent = JSON.stringify(found).replace(/[^ -~]/g,
    sign => '\\\\u' + sign.charCodeAt(0).toString(16).padStart(4, '0'));
  said.id = 'found';
  document.body.append(said);
  waits.close();
}
</script>
<iframe src="%s" width="390" height="800" onload="drive(this)"></iframe>
'''


def write_page(folder: Path, note: Document = NOTE) -> Path:
  page = folder / 'note.html'
  record = record_of(Annotation(note, 4, 0, 9, 0, 0))
  page.write_text(note_page(note, record), encoding='utf-8', newline='')
  return page


def driven(browser: str, folder: Path, steps: str, note: Document = NOTE) -> dict:
  """What the page says and saves after these steps."""
  page = write_page(folder, note)
  drive = folder / 'drive.html'
  drive.write_text(_DRIVE % (steps, page.name), encoding='utf-8')
  found, console = dumped(browser, folder / 'home', drive, 'light')
  assert 'error' not in found and console == [], (found, console)
  assert found['told'] and found['text'] == note.text and found['wide'] <= 390
  return found


def read_back(folder: Path, found: dict, name: str) -> tuple[Document, dict]:
  """The saved files by the package's readers: (document of brat, record); both say the same."""
  folder = folder / 'brat'
  folder.mkdir()
  for file, text in found['files'].items():
    if not file.endswith('.json'):
      (folder / file).write_text(text, encoding='utf-8', newline='')
  (document,), counts = read_brat(folder)
  record = json.loads(found['files'][f'{name}.json'])
  checked = sum(bool(entity['checked']) for entity in record['entities'])
  assert counts['notes'] == checked and counts['discontinuous'] <= 1
  held = held_document(record, Document(record['file'], document.text, (), ()))
  assert (held.spans, held.relations) == (document.spans, document.relations)
  # Line by line as the package writes it, but for the notes of what was checked.
  lines = [line for line in found['files'][f'{name}.ann'].splitlines() if line[0] != '#']
  assert lines == brat_annotation(document).splitlines()
  return document, record


def test_accept_correct_drop_and_add(browser, tmp_path):
  """The inner span stays as it was: of overlapping ones a click finds the shortest first, then the
  other. With 'no' its negation goes; a new type of a modifier is that of its relation, too."""
  found = driven(browser, tmp_path, '''
    mark(' pain'.trim()).click();
    found.first = find('words').textContent;
    mark('pain').click();
    found.second = find('words').textContent;
    act('accept');
    // By keyboard: a span is chosen, accepted, and the next one that is not checked is sought.
    mark('aspirin').focus();
    press(mark('aspirin'), 'Enter');
    press(mark('aspirin'), 'a');
    press(mark('aspirin'), 'n');
    found.third = find('words').textContent;
    set('type', 'dosage');
    mark('heparin').click();
    set('type', 'drug');
    mark('fever').click();
    await select('fever \\ud83c\\udf21');
    act('move');
    mark('no').click();
    press(find('note'), 'd');
    mark('<b>today</b>').click();
    for (let i = 0; i < 3; i++) { act('start-later'); }
    for (let i = 0; i < 4; i++) { act('end-earlier'); }
    await select(' \\ud83d\\udc8a aspirin ');
    set('newtype', 'treatment');
    act('add');
    // Words are selected by a key, too: the next one after the chosen span.
    press(find('panel'), 'w');
    found.word = find('selected').textContent;
    press(find('panel'), 'w');
    found.words = find('selected').textContent;
    // Twice the same is none.
    await select('\\ud83d\\udc8a aspirin');
    act('add');
    found.twice = find('status').textContent;
    // Added and dropped again: it leaves no trace.
    await select('MRT');
    act('add');
    act('undo');''')
  assert (found['first'], found['second'], found['third']) == ('pain', 'chest\n pain', 'by mouth')
  assert (found['word'], found['words']) == ('by', 'mouth')
  assert 'There is such a span already' in found['twice']
  assert found['status'].startswith('8 of 10 checked, not saved')
  document, record = read_back(tmp_path, found, 'a b')
  assert document.text == TEXT and record['file'] == NOTE.name
  fever, today, mouth, pill = (span(words, kind) for words, kind in (
    ('fever \U0001f321', 'problem'), ('today', 'test'), ('by mouth', 'dosage'),
    ('\U0001f48a aspirin', 'treatment')))
  heparin = HEPARIN._replace(type='drug')
  spans = [PAIN, INNER, fever, pill, ASPIRIN, heparin, today, SEVERE, mouth]
  assert document.spans == tuple(spans)
  assert set(document.relations) == {
    Relation('severity', 0, 7), Relation('severity', 1, 7), Relation('dosage', 4, 8)}
  states = {entity['text']: entity['checked'] for entity in record['entities']}
  assert states == {
    'chest\n pain': 'accepted', 'pain': False, 'fever \U0001f321': 'corrected',
    '\U0001f48a aspirin': 'added', 'aspirin': 'accepted', 'heparin': 'corrected',
    'today': 'corrected', 'Severe': False, 'by mouth': 'corrected'}
  assert record['review'] == {'checked': 8, 'of': 10, 'dropped': [
    {'start': NO.start, 'end': NO.end, 'type': 'negation', 'text': 'no'}]}
  assert record['sha256'] == hashlib.sha256(TEXT.encode()).hexdigest()


def test_what_nobody_touched_is_saved_as_it_was(browser, tmp_path):
  """With a byte order mark, which the package's reader leaves out with its place, and a relation of
  a span to itself."""
  note = Document('b.txt', f'\ufeff{TEXT}', tuple(
    s._replace(start=s.start + 1, end=s.end + 1) for s in SPANS), NOTE.relations)
  found = driven(browser, tmp_path, "mark('fever').click(); act('drop'); act('undo');", note)
  assert found['status'].startswith('0 of 9 checked')
  assert found['files']['b.txt'] == note.text and '#' not in found['files']['b.ann']
  assert found['files']['b.ann'] == brat_annotation(note)
  record = json.loads(found['files']['b.json'])
  assert held_document(record, note) == note and record['review']['dropped'] == []


@pytest.mark.parametrize('mode', ['light', 'dark'])
def test_pages_fit_and_can_be_read(browser, tmp_path, mode):
  """A note whose text and name are markup stays text; all sticks to a phone's width."""
  script = '</script><script>document.title = "owned"</script>'
  note = Document(f'{script.replace("/", "|")}.txt', f'{script} {"long" * 90} & fever', (
    Span(0, 9, 'problem'), Span(0, 9 + len(script), 'drug')), ())
  page = write_page(tmp_path, note)
  record = record_of(Annotation(note, 4, 0, 9, 0, 0))
  index = tmp_path / 'index.html'
  index.write_text(index_page([record], {'b.txt': 'is no file'}))
  assert all('not checked by anybody' in one.read_text() for one in (page, index))
  assert page.read_text().count('<script') == 2 and index.read_text().count('<script') == 0
  for one in (page, index)[:1 if mode == 'dark' else 2]:
    found, console = looked_at(browser, tmp_path / 'home', mode, one)
    assert console == []
    for width, seen in found.items():
      assert seen['page'] <= int(width) and seen['narrow'] == [] and seen['pale'] == [], seen
  if folder := os.environ.get('FEDMEDJAX_SCREENSHOTS'):
    page = write_page(tmp_path)
    for width in (390, 1280):
      picture = Path(folder).absolute() / f'note_{width}_{mode}.png'
      run_browser(browser, tmp_path / 'home', mode, page, f'--screenshot={picture}',
                  f'--window-size={width},1100')

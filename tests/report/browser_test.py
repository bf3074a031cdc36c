"""The report in headless Chromium: wide and narrow, light and dark; no errors, nothing sticks out.

`.ci/run` installs the browser and sets FEDMEDJAX_REQUIRE_BROWSER; elsewhere the tests are skipped
where there is none. With FEDMEDJAX_SCREENSHOTS=FOLDER it also takes pictures, to be looked at.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from invented_run import described, entry, invent, record, write

from fedmedjax.report import Plot, Table, write_report

WIDTHS = (390, 1280)
MODES = {'light': 1, 'dark': 0}

# A page that holds the report in frames of each width, looks at them and says what it found.
_LOOK = '''
<!doctype html><meta charset="utf-8"><body style="margin: 0">
%s
<script>
const channels = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
const over = (top, below) => {
  const alpha = top.length > 3 ? top[3] : 1;
  return below.map((value, i) => alpha * top[i] + (1 - alpha) * value);
};
const light = rgb => {
  const linear = v => v > .04045 ? ((v + .055) / 1.055) ** 2.4 : v / 12.92;
  const [r, g, b] = rgb.map(v => linear(v / 255));
  return .2126 * r + .7152 * g + .0722 * b;
};
const contrast = (a, b) => {
  const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
  return (high + .05) / (low + .05);
};
function behind(element, view) {
  if (!element) return [255, 255, 255];
  const own = channels(view.getComputedStyle(element).backgroundColor);
  const below = behind(element.parentElement, view);
  return own.length ? over(own, below) : below;
}
function look(frame) {
  const view = frame.contentWindow, page = frame.contentDocument, found = {narrow: [], pale: []};
  for (const details of page.querySelectorAll('details')) details.open = true;
  found.page = page.documentElement.scrollWidth;
  found.background = view.getComputedStyle(page.body).backgroundColor;
  for (const element of page.querySelectorAll('body *')) {
    const box = element.getBoundingClientRect();
    const inside = element.closest('.scroll');
    const card = element.closest('.card');
    if (card && box.right > card.getBoundingClientRect().right + .5)
      found.narrow.push(`${element.tagName} ${element.textContent.slice(0, 40)} leaves its card`);
    if (!(inside && inside !== element) && (box.right > frame.clientWidth + .5 || box.left < -.5))
      found.narrow.push(`${element.tagName} ${element.textContent.slice(0, 40)} ${box.right}`);
    const text = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (text && element.tagName !== 'STYLE') {
      const style = view.getComputedStyle(element), svg = element.closest('svg');
      const colour = channels(svg ? style.fill : style.color).slice(0, 3);
      const ratio = contrast(colour, behind(svg || element, view));
      if (ratio < 4.5) found.pale.push(`${element.textContent.slice(0, 40)} ${ratio.toFixed(2)}`);
    }
  }
  const labels = [...page.querySelectorAll("svg text")];
  found.size = Math.min(...labels.map(text => text.getBoundingClientRect().height));
  found.svgs = page.querySelectorAll('svg').length;
  return found;
}
onload = () => {
  const found = {};
  for (const frame of document.querySelectorAll('iframe')) found[frame.width] = look(frame);
  const said = document.createElement('pre');
  said.textContent = JSON.stringify(found);
  said.id = 'found';
  document.body.append(said);
};
</script>
'''


@pytest.fixture(scope='module')
def browser() -> str:
  names = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
  found = next(filter(None, map(shutil.which, names)), None)
  if not found:
    assert not os.environ.get('FEDMEDJAX_REQUIRE_BROWSER'), 'no Chromium is installed'
    pytest.skip('no Chromium is installed (Debian: apt-get install chromium)')
  return found


def run_browser(browser: str, home: Path, mode: str, page: Path, *more: str):
  return subprocess.run(
    [browser, '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage',
     '--hide-scrollbars', '--allow-file-access-from-files', f'--user-data-dir={home}',
     f'--blink-settings=preferredColorScheme={MODES[mode]}', '--enable-logging=stderr',
     '--window-size=1700,1000', *more, page.as_uri()],
    capture_output=True, text=True, timeout=120, check=True, env=os.environ | {'HOME': str(home)})


def looked_at(browser: str, home: Path, mode: str, page: Path) -> tuple[dict, list[str]]:
  """What a page looks like -> ({width: see `look` above}, the console's messages)."""
  frames = ''.join(
    f'<iframe src="{page.name}" width="{width}" height="800" style="border: 0"></iframe>'
    for width in WIDTHS)
  frame = page.with_name(f'look_{page.name}')
  frame.write_text(_LOOK % frames)
  done = run_browser(browser, home, mode, frame, '--dump-dom')
  found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
  assert found, done.stderr[-2000:]
  # What is in the page as markup comes back escaped, and is compared as text only.
  values = json.loads(found[1].replace('&lt;', '<').replace('&gt;', '>').replace('&amp;', '&'))
  return values, [line for line in done.stderr.splitlines() if 'CONSOLE' in line]


@pytest.fixture(scope='module')
def pages(tmp_path_factory) -> dict[str, Path]:
  """A run with all that a run can have, and a comparison, with names as long as they get."""
  folder = tmp_path_factory.mktemp('pages')
  long, longer = 'synthetic_dictation', 'a_very_long_name_of_a_hospital_somewhere_in_the_north'
  gold, found = [(0, 5, 'problem'), (6, 12, 'drug')], [(0, 12, 'test'), (20, 30, 'problem')]
  answers = [record(found, gold), record([], gold, text='Word' * 60, start=900)]
  scores = {site: {'ner': entry(0.5), 're': {'modifier': entry(0.25), 'triple': entry(0.1)}}
            for site in (long, longer, 'elsewhere')}
  cross = {site: {other: {'ner': entry(0.9 if site == other else 0.1)} for other in scores}
           for site in (long, longer)}
  runs = {}
  for name, more in (('fed_medlora_plus', {}), ('single_site', {'cross_site': cross}),
                     ('centralised', {}), ('api:some-vendor/some-large-model-2026-01-01', {})):
    runs[name] = invent(
      folder / str(len(runs)), sites=(long, longer), records=answers,
      summary={'scores': scores, **more})
    write(runs[name] / 'sites.json', described(long, longer, 'elsewhere'))
  out = {'run': folder / 'run.html', 'comparison': folder / 'comparison.html'}
  write_report(out['run'], 'a_run', {'fed_medlora_plus': runs['fed_medlora_plus']}, examples=3)
  write_report(
    out['comparison'], 'comparison', runs, examples=2,
    sentences=['federated - best single site: +0.12 [0.08, 0.15]'],
    tables=[Table('By seed', 'Mean strict F1.', ('regime', 'seed 0', 'seed 1'),
                  [('fed_medlora_plus', '0.5', '0.6')], beside=True)],
    plots=[Plot('New site', 'Strict F1.', 'sentences', {
      'tuned': [(0, 0.1, 0, 0.2), (10, 0.3, None, None), (50, 0.4, 0.3, 0.5)]})])
  return out


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('name', ['run', 'comparison'])
def test_a_report_fits_and_can_be_read(browser, pages, tmp_path, name, mode):
  found, console = looked_at(browser, tmp_path, mode, pages[name])
  assert console == []
  for width in WIDTHS:
    one = found[str(width)]
    assert one['page'] <= width and one['narrow'] == [], (width, one)
    # Of text, 4.5 : 1 as the Web Content Accessibility Guidelines 2.2 (1.4.3) ask for.
    assert one['pale'] == [], (width, one['pale'])
    assert one['svgs'] >= 8 and one['size'] >= 8, (width, one['size'])
  assert (found['390']['background'] == 'rgb(20, 23, 26)') == (mode == 'dark')
  folder = os.environ.get('FEDMEDJAX_SCREENSHOTS')
  for width in WIDTHS if folder else ():
    picture = Path(folder).absolute() / f'{name}_{width}_{mode}.png'
    run_browser(browser, tmp_path, mode, pages[name], f'--screenshot={picture}',
                f'--window-size={width},6000')


def test_what_would_be_wrong_is_seen(browser, tmp_path):
  """Planted: something too wide, text too pale, a script and a picture from elsewhere."""
  bad = tmp_path / 'bad.html'
  bad.write_text(
    '<!doctype html><meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    'style-src \'unsafe-inline\'"><body><p style="width: 500px; color: #999">pale</p>'
    '<img src="http://127.0.0.1:9/x.png"><script>document.body.innerHTML = ""</script><svg></svg>')
  found, console = looked_at(browser, tmp_path / 'home', 'light', bad)
  assert found['390']['page'] > 390 and found['390']['narrow']
  assert found['1280']['pale'] == ['pale 2.85'] and found['1280']['narrow'] == []
  assert sum('Content Security Policy' in line for line in console) >= 2

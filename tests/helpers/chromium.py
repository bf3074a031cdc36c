"""Pages in headless Chromium: how they look at several widths, what they say, pictures of them.

`.ci/run` installs the browser and sets FEDMEDJAX_REQUIRE_BROWSER; elsewhere the tests are skipped
where there is none.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

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
  // As it is opened, with details folded; then all of it.
  found.folded = [page.documentElement.scrollWidth, page.documentElement.scrollHeight];
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
  const labels = [...page.querySelectorAll('svg text')];
  const heights = labels.map(text => text.getBoundingClientRect().height);
  if (labels.length) found.size = Math.min(...heights);
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


def find_browser() -> str:
  """The program, or a skip where there is none."""
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
  return dumped(browser, home, frame, mode)


def check_fits(found: dict) -> None:
  """Nothing is wider than the window, and all can be read; `found` is of `looked_at`."""
  for width in WIDTHS:
    one = found[str(width)]
    assert one['page'] <= width and one['narrow'] == [], (width, one)
    # Details folded, all of the page is a few screens of a phone.
    assert one['folded'][0] <= width and one['folded'][1] <= 4000, (width, one['folded'])
    # Of text, 4.5 : 1 as the Web Content Accessibility Guidelines 2.2 (1.4.3) ask for.
    assert one['pale'] == [], (width, one['pale'])


def dumped(browser: str, home: Path, page: Path, mode: str) -> tuple[dict, list[str]]:
  """What a page says in <pre id="found"> once it is loaded, and the console's messages."""
  done = run_browser(browser, home, mode, page, '--dump-dom')
  found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
  assert found, done.stderr[-2000:]
  # What is in the page as markup comes back escaped, and is compared as text only.
  values = json.loads(found[1].replace('&lt;', '<').replace('&gt;', '>').replace('&amp;', '&'))
  return values, [line for line in done.stderr.splitlines() if 'CONSOLE' in line]

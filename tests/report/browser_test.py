"""The report in headless Chromium: wide and narrow, light and dark; no errors, nothing sticks out.

With FEDMEDJAX_SCREENSHOTS=FOLDER it also takes pictures, to be looked at.
"""

import os
from pathlib import Path

import pytest
from chromium import MODES, WIDTHS, check_fits, looked_at, run_browser
from invented_run import described, entry, invent, record, write

from fedmedjax.report import Plot, Table, write_report


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
  said = [f'{longer} has learnt nothing, for the {n}th time; see config.data.max_length'
          for n in range(4, 12)]
  answered = {site: {'asked': 120, 'copied': 117, 'unreadable': 31} for site in scores}
  runs = {}
  for name, more in (('fed_medlora_plus', {}), ('single_site', {'cross_site': cross}),
                     ('centralised', {}), ('api:some-vendor/some-large-model-2026-01-01', {})):
    runs[name] = invent(
      folder / str(len(runs)), sites=(long, longer), records=answers,
      summary={'scores': scores, 'warnings': said, 'answers': answered, **more})
    write(runs[name] / 'sites.json', described(long, longer, 'elsewhere'))
  out = {'run': folder / 'run.html', 'comparison': folder / 'comparison.html'}
  write_report(out['run'], 'a_run', {'fed_medlora_plus': runs['fed_medlora_plus']}, examples=3)
  write_report(
    out['comparison'], 'comparison', runs, examples=2,
    first='Of 4 regimes, fed_medlora_plus has the highest mean strict F1 of entities.',
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
  check_fits(found)
  for width in WIDTHS:
    one = found[str(width)]
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

// Checking a note in the browser. Spans are {id, start, end, type, was, state}: `was` is what the
// model found, or null for one that a person added, and `state` is '' until a person has checked it.
(() => {
  const find = id => document.getElementById(id);
  const held = JSON.parse(find('held').textContent);
  const note = find('note');

  const {points, words, pointAt} = characters(held.text);
  const spans = held.record.entities.map(({start, end, type}, id) =>
    ({id, start, end, type, was: {start, end, type}, state: ''}));
  const links = held.record.relations;
  let chosen = null, picked = null, unsaved = false;

  const alive = span => span.state !== 'dropped';
  // What a person added and took away again counts nothing.
  const counted = () => spans.filter(span => span.was || alive(span));
  const isEntity = type => held.entity_types.includes(type);
  const shade = type => isEntity(type) ? `t-${held.plain[type]}` : 't-modifier';
  const inOrder = (a, b) => isEntity(b.type) - isEntity(a.type) || a.start - b.start ||
    a.end - b.end || (a.type < b.type ? -1 : a.type > b.type ? 1 : 0);
  const byPlace = (a, b) => a.start - b.start || a.end - b.end || a.id - b.id;
  const shown = span => span.state || 'not checked';

  // Relations both of whose ends are left, with the modifier's type as their own.
  function keptLinks() {
    return links.flatMap(({type, head, tail}) => {
      const [main, other] = [spans[head], spans[tail]];
      if (!alive(main) || !alive(other)) return [];
      const same = main.type === main.was.type && other.type === other.was.type;
      if (same) return [{type, head, tail}];
      const kind = type === other.was.type ? other.type : type;
      return (held.allowed[main.type] || []).includes(kind) ? [{type: kind, head, tail}] : [];
    });
  }

  function element(tag, properties, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  function drawNote() {
    const live = spans.filter(alive);
    const edges = [...new Set([0, points.length, ...live.flatMap(s => [s.start, s.end])])].sort(
      (a, b) => a - b);
    const focused = note.contains(document.activeElement);
    const pieces = edges.slice(1).map((end, i) => {
      const start = edges[i];
      const over = live.filter(s => s.start <= start && s.end >= end);
      if (!over.length) return document.createTextNode(words(start, end));
      const types = [...new Set(over.map(s => shade(s.type)))];
      const mark = element('mark', {
        className: types.join(' ') + (over.includes(chosen) ? ' chosen' : ''), tabIndex: 0,
        title: over.map(s => s.type).join(', ')}, words(start, end));
      mark.setAttribute('role', 'button');
      mark.setAttribute('aria-label', over.map(
        s => `${words(s.start, s.end)}: ${s.type}, ${shown(s)}`).join('; '));
      mark.dataset.spans = over.map(s => s.id).join(' ');
      const ending = over.filter(s => s.end === end);
      if (ending.length) mark.dataset.label = ending.map(
        s => s.type + (s.state ? ' \u2713' : '')).join(', ');
      return mark;
    });
    note.replaceChildren(...pieces);
    if (focused && chosen) firstMark(chosen)?.focus({preventScroll: true});
  }

  const firstMark = span => [...note.querySelectorAll('mark')].find(
    mark => mark.dataset.spans.split(' ').includes(String(span.id)));

  function drawLists() {
    find('spans').replaceChildren(...[...spans].sort(byPlace).map(span => {
      const button = element('button', {type: 'button', className: 'plain'},
        words(span.start, span.end));
      button.dataset.choose = span.id;
      return element('li', {className: alive(span) ? '' : 'dropped'}, button,
        ` ${span.type}, ${shown(span)}`);
    }));
    const rows = keptLinks().map(({type, head, tail}) => element('tr', {},
      element('td', {}, element('span', {className: shade(spans[head].type)},
        words(spans[head].start, spans[head].end))),
      element('td', {}, type), element('td', {}, words(spans[tail].start, spans[tail].end))));
    find('links')?.replaceChildren(...rows);
  }

  function drawPanel(message = '') {
    const done = counted().filter(span => span.state).length;
    find('status').textContent = `${done} of ${counted().length} checked` +
      (unsaved ? ', not saved' : '') + (message && `. ${message}`);
    find('chosen').hidden = !chosen;
    if (chosen) {
      find('words').textContent = words(chosen.start, chosen.end);
      find('state').textContent = shown(chosen);
      find('type').value = chosen.type;
      for (const control of find('chosen').querySelectorAll('button, select'))
        control.disabled = !alive(chosen) && control.dataset.do !== 'undo';
    }
    find('picked').hidden = !picked;
    if (picked) find('selected').textContent = words(picked.start, picked.end);
    find('move').disabled = !chosen || !alive(chosen);
  }

  function draw(message) {
    drawNote();
    drawLists();
    drawPanel(message);
  }

  function choose(span, focus) {
    chosen = span;
    draw();
    if (!focus || !span) return;
    const mark = firstMark(span);
    mark?.focus();
    mark?.scrollIntoView({block: 'center'});
  }

  // Gives the chosen span another place or type, unless another has both already.
  function correct(change) {
    const next = {...chosen, ...change};
    if (next.start < 0 || next.end > points.length || !words(next.start, next.end).trim())
      return drawPanel('A span needs a word.');
    if (spans.some(s => s !== chosen && alive(s) && s.start === next.start && s.end === next.end &&
        s.type === next.type)) return draw('There is such a span already.');
    const {was} = chosen;
    const same = was && was.start === next.start && was.end === next.end && was.type === next.type;
    Object.assign(chosen, change, {state: was ? (same ? 'accepted' : 'corrected') : 'added'});
    unsaved = true;
    draw();
  }

  function wordAfter(at) {
    while (at < points.length && !points[at].trim()) at++;
    let end = at;
    while (end < points.length && points[end].trim()) end++;
    return at < end ? {start: at, end} : null;
  }

  function add() {
    const type = find('newtype').value, {start, end} = picked;
    if (spans.some(s => alive(s) && s.start === start && s.end === end && s.type === type))
      return drawPanel('There is such a span already.');
    spans.push({id: spans.length, start, end, type, was: null, state: 'added'});
    unsaved = true;
    picked = null;
    document.getSelection().removeAllRanges();
    choose(spans.at(-1));
  }

  function step(by) {
    const order = [...spans].sort(byPlace), at = order.indexOf(chosen);
    for (let i = 1; i <= order.length; i++) {
      const place = at < 0 && by < 0 ? order.length - i : at + by * i;
      const next = order[(place + order.length * 2) % order.length];
      if (!next.state) return choose(next, true);
    }
    drawPanel('All are checked.');
  }

  function set(state) {
    chosen.state = state;
    unsaved = true;
    draw(state === 'dropped' && links.some(
      link => spans[link.head] === chosen || spans[link.tail] === chosen)
      ? 'Its relations go with it.' : '');
  }

  function undo() {
    if (!chosen.was) return set(alive(chosen) ? 'dropped' : 'added');
    Object.assign(chosen, chosen.was, {state: ''});
    unsaved = true;
    draw();
  }

  const actions = {
    accept: () => set(chosen.was && chosen.state === 'corrected' ? 'corrected' :
      chosen.was ? 'accepted' : 'added'),
    drop: () => set('dropped'), undo, add,
    word: () => {
      // The next word after what is selected or chosen, for those who have no mouse.
      picked = wordAfter((picked || chosen || {end: 0}).end) || wordAfter(0);
      drawPanel();
    },
    move: () => {
      const place = picked;
      picked = null;
      correct(place);
    },
    'start-earlier': () => correct({start: chosen.start - 1}),
    'start-later': () => correct({start: chosen.start + 1}),
    'end-earlier': () => correct({end: chosen.end - 1}),
    'end-later': () => correct({end: chosen.end + 1}),
    next: () => step(1), previous: () => step(-1),
    brat: () => {
      save(`${held.name}.txt`, held.text);
      const {entities, relations} = reviewed();
      // brat has no place for blanks in a name.
      const plain = some => some.map(one => ({...one, type: held.plain[one.type] ?? one.type}));
      save(`${held.name}.ann`, bratAnnotation(
        characters(held.text), plain(entities), plain(relations)));
    },
    json: () => save(`${held.name}.json`, JSON.stringify(reviewed(), null, 1) + '\n'),
  };

  // The record of annotations.jsonl as the person left it; see docs/running.md.
  function reviewed() {
    const live = spans.filter(alive).sort(inOrder);
    const place = new Map(live.map((span, i) => [span.id, i]));
    const said = ({start, end, type}) => ({start, end, type, text: words(start, end)});
    return {
      ...held.record,
      entities: live.map(span => ({...said(span), checked: span.state || false})),
      relations: keptLinks().map(({type, head, tail}) =>
        ({type, head: place.get(head), tail: place.get(tail)})),
      review: {
        checked: counted().filter(span => span.state).length, of: counted().length,
        dropped: spans.filter(span => !alive(span) && span.was).map(span => said(span.was))},
    };
  }

  function save(name, content) {
    const address = URL.createObjectURL(new Blob([content], {type: 'text/plain;charset=utf-8'}));
    const link = element('a', {href: address, download: name});
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
    unsaved = false;
    drawPanel(`Saved ${name}.`);
  }

  // The selected characters of the note without blanks at their ends; null = none.
  function selection() {
    const chosenText = document.getSelection();
    if (!chosenText.rangeCount || chosenText.isCollapsed) return null;
    const range = chosenText.getRangeAt(0);
    if (!note.contains(range.startContainer) || !note.contains(range.endContainer)) return null;
    const before = document.createRange();
    before.selectNodeContents(note);
    before.setEnd(range.startContainer, range.startOffset);
    const begin = before.toString().length;
    let start = pointAt(begin, false), end = pointAt(begin + range.toString().length, true);
    while (start < end && !points[start].trim()) start++;
    while (end > start && !points[end - 1].trim()) end--;
    return start < end ? {start, end} : null;
  }

  document.addEventListener('selectionchange', () => {
    const now = selection();
    // A click on a button takes the selection away; what was selected is still meant.
    if (!now && !note.contains(document.getSelection().anchorNode)) return;
    picked = now;
    drawPanel();
  });
  note.addEventListener('click', event => {
    const mark = event.target.closest('mark');
    if (!mark || selection()) return;
    // Of spans that overlap the shortest first, then the others in turn.
    const over = mark.dataset.spans.split(' ').map(id => spans[id]).sort(
      (a, b) => (a.end - a.start) - (b.end - b.start) || a.id - b.id);
    choose(over[(over.indexOf(chosen) + 1) % over.length]);
  });
  find('panel').addEventListener('click', event => {
    const button = event.target.closest('button[data-do]');
    if (button) actions[button.dataset.do]();
  });
  find('spans').addEventListener('click', event => {
    const button = event.target.closest('button[data-choose]');
    if (button) choose(spans[button.dataset.choose], true);
  });
  find('type').addEventListener('change', event => correct({type: event.target.value}));
  document.addEventListener('keydown', event => {
    const inside = event.target.closest('#note, #panel, #list');
    if (!inside || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches('mark') && (event.key === 'Enter' || event.key === ' ')) {
      event.preventDefault();
      return event.target.click();
    }
    if (event.target.matches('select')) return;
    const action = {a: 'accept', d: 'drop', n: 'next', p: 'previous', w: 'word'}[event.key];
    if (['next', 'previous', 'word'].includes(action) || (action && chosen && alive(chosen)))
      actions[action]();
  });
  addEventListener('beforeunload', event => {
    if (unsaved) event.preventDefault();
  });

  for (const id of ['panel', 'list']) find(id).hidden = false;
  draw();
})();

'use strict';
// Characters of a text, that is code points, which offsets count while JavaScript counts UTF-16
// units, and the annotation of a text as brat has it.

function characters(text) {
  const points = Array.from(text);
  const units = [0];
  for (const point of points) units.push(units.at(-1) + point.length);
  return {
    points,
    words: (start, end) => points.slice(start, end).join(''),
    // The character that a UTF-16 unit belongs to; upwards, that behind it.
    pointAt(unit, upwards) {
      let low = 0, high = points.length;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (units[middle] <= unit) low = middle; else high = middle - 1;
      }
      return upwards && units[low] < unit ? low + 1 : low;
    },
  };
}

// Line ends and blanks as Python, which reads the files, understands them.
const LINE_END = /[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]/g;
const BLANK = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/;

// A span over several lines is written in as many pieces, as brat wants it.
function bratSpan({points, words}, {start, end, type}, number) {
  const pieces = [];
  for (let at = start; at < end; at++) {
    if (points[at] === '\n' || points[at] === '\r') continue;
    if (pieces.length && pieces.at(-1)[1] === at) pieces.at(-1)[1] = at + 1;
    else pieces.push([at, at + 1]);
  }
  const whole = pieces.length && pieces[0][0] === start && pieces.at(-1)[1] === end;
  const offsets = whole ? pieces.map(piece => piece.join(' ')).join(';') : `${start} ${end}`;
  const stated = whole ? pieces.map(piece => words(...piece).replace(LINE_END, ' ')).join(' ')
    : words(start, end).split(BLANK).filter(Boolean).join(' ');
  return `T${number}\t${type} ${offsets}\t${stated}`;
}

// The content of a .ann file, with a note at every span that a person has checked.
function bratAnnotation(text, entities, relations) {
  const lines = entities.map((span, i) => bratSpan(text, span, i + 1));
  lines.push(...relations.map(({type, head, tail}, i) => {
    if (head !== tail) return `R${i + 1}\t${type} Arg1:T${head + 1} Arg2:T${tail + 1}`;
    const [name, ...value] = type.split('=');
    return `A${i + 1}\t${name} T${head + 1} ${value.join('=')}`.trimEnd();
  }));
  const checked = entities.flatMap(({checked}, i) => checked ? [[checked, i + 1]] : []);
  lines.push(...checked.map(([how, span], i) =>
    `#${i + 1}\tAnnotatorNotes T${span}\tchecked by a person: ${how}`));
  return lines.map(line => `${line}\n`).join('');
}

// Numbers with their uncertainty as dots on bars: a drawing for the eye, and the same as a table for everyone.

import { draw, make, table } from './dom.js';

const ROW = 26,
  LEFT = 8,
  RIGHT = 8,
  TOP = 6,
  BOTTOM = 22,
  WIDTH = 320;

/**
 * The drawing alone, for where a sentence says the same.
 * @param {{name: string, value: number, low: ?number, high: ?number, other: number}[]} rows
 * @param {{low: number, high: number, words: (x: number) => string}} scale
 */
export function drawing(rows, scale) {
  const across = WIDTH - LEFT - RIGHT,
    height = TOP + ROW * rows.length + BOTTOM;
  const x = (value) => LEFT + across * Math.min(1, Math.max(0, (value - scale.low) / (scale.high - scale.low)));
  const picture = draw('svg', { viewBox: `0 0 ${WIDTH} ${height}`, class: 'chart', 'aria-hidden': 'true' });
  for (const tick of [scale.low, (scale.low + scale.high) / 2, scale.high]) {
    const anchor = tick === scale.low ? 'start' : tick === scale.high ? 'end' : 'middle';
    picture.append(
      draw('line', { class: 'grid', x1: x(tick), x2: x(tick), y1: TOP, y2: height - BOTTOM }),
      draw('text', { class: 'tick', x: x(tick), y: height - 6, 'text-anchor': anchor }, scale.words(tick)),
    );
  }
  rows.forEach((row, number) => {
    const y = TOP + ROW * (number + 0.5);
    if (row.low !== null)
      picture.append(draw('line', { class: 'range', x1: x(row.low), x2: x(row.high), y1: y, y2: y }));
    picture.append(
      draw('path', { class: 'other', d: `M ${x(row.other)} ${y - 9} v 18` }),
      draw('circle', { class: 'dot', cx: x(row.value), cy: y, r: 5 }),
    );
  });
  return picture;
}

/**
 * @param {string} caption what is shown
 * @param {{name: string, value: number, low: ?number, high: ?number, other: number}[]} rows
 * @param {{low: number, high: number, words: (x: number) => string, value: string, other: string}} scale
 */
export function dots(caption, rows, scale) {
  const said = rows.map((row) => [
    row.name,
    scale.words(row.value),
    row.low === null ? 'not known' : `${scale.words(row.low)} to ${scale.words(row.high)}`,
    scale.words(row.other),
  ]);
  return make(
    'figure',
    {},
    drawing(rows, scale),
    make(
      'figcaption',
      { class: 'legend' },
      make('span', { class: 'key-dot' }, scale.value),
      make('span', { class: 'key-range' }, 'where it likely is'),
      make('span', { class: 'key-other' }, scale.other),
    ),
    make(
      'details',
      {},
      make('summary', {}, 'The same as a table'),
      make(
        'div',
        { class: 'wide', tabindex: 0, role: 'region', 'aria-label': caption },
        table(caption, ['', scale.value, 'likely range', scale.other], said),
      ),
    ),
  );
}

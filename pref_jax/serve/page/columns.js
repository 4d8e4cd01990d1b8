// Numbers by day as columns: a drawing for the eye, and the same as a table for everyone.

import { draw, make, table } from './dom.js';

const WIDTH = 400,
  HEIGHT = 130,
  TOP = 18,
  BOTTOM = 22,
  SHOWN = 60,
  WIDEST = 40;

/** @param {{name: string, value: number, users: number}[]} rows one for each day that had votes, in order */
export function columns(caption, rows) {
  const some = rows.slice(-SHOWN),
    most = Math.max(...some.map((row) => row.value), 1);
  const step = Math.min(WIDEST, WIDTH / some.length),
    floor = HEIGHT - BOTTOM;
  const picture = draw(
    'svg',
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: 'chart columns', 'aria-hidden': 'true' },
    draw('line', { class: 'grid', x1: 0, x2: WIDTH, y1: floor, y2: floor }),
  );
  some.forEach((row, place) => {
    const tall = ((floor - TOP) * row.value) / most;
    picture.append(
      draw('rect', {
        class: 'column',
        x: step * place + 2,
        y: floor - tall,
        width: Math.max(1, step - 4),
        height: tall,
      }),
    );
    if (step >= WIDEST) {
      picture.append(
        draw(
          'text',
          { class: 'tick', x: step * (place + 0.5), y: floor - tall - 5, 'text-anchor': 'middle' },
          row.value,
        ),
      );
    }
  });
  picture.append(draw('text', { class: 'tick', x: 0, y: HEIGHT - 5 }, some[0].name));
  if (some.length > 4) {
    picture.append(
      draw('text', { class: 'tick', x: step * some.length, y: HEIGHT - 5, 'text-anchor': 'end' }, some.at(-1).name),
    );
  }
  return make(
    'figure',
    {},
    picture,
    make(
      'details',
      {},
      make('summary', {}, 'The same as a table'),
      table(
        caption,
        ['Day', 'Votes', 'People'],
        rows.map((row) => [row.name, row.value, row.users]),
      ),
    ),
  );
}

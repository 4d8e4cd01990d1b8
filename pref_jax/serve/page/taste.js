// What is believed of this person's taste: on which answers they differ from people in general, and the weights behind.

import { userPath } from './api.js';
import { dots, drawing } from './chart.js';
import { at, make, promptText, refill, show } from './dom.js';
import { count, decimal, percent } from './words.js';

const PAIRS = 3,
  LINES = 10,
  SURE = 1.96;
// Chances that differ by less are the same to people.
const FAR = 0.01;

/** Asks what is believed and shows it; `onPair` gets a pair that the person wants to vote on. */
export async function showTaste(api, user, pool, onPair) {
  const [known, found] = await Promise.all([
    api.get(userPath(user)),
    api.post(`${userPath(user)}/taste`, { pool, count: PAIRS }),
  ]);
  at('taste-how').textContent =
    `From ${count(known.votes, 'vote')} of yours on this service. It changes with each vote; more ` +
    'votes make it surer. If it is wrong, vote: that is what corrects it.';
  refill(at('contrasts'), ...contrasts(found, onPair));
  refill(at('taste'), weights(known.belief));
}

/** Before the first vote. */
export function showNoTaste() {
  at('taste-how').textContent = 'Nothing is known of you yet: vote, and it will show here.';
  show(at('contrasts'));
  show(at('taste'));
}

function contrasts({ pairs, considered }, onPair) {
  if (!considered) {
    return [
      make('p', {}, 'This kind of model reads each answer together with the person, and can show only the ranking.'),
    ];
  }
  const far = pairs.filter((pair) => Math.abs(pair.own - pair.everyone) >= FAR);
  if (!far.length) return [make('p', {}, 'The service believes that you choose as people in general do.')];
  return [
    make('h3', {}, 'Where you differ most from people in general'),
    make('div', { class: 'contrasts' }, ...far.map((pair) => contrast(pair, onPair))),
  ];
}

function contrast(pair, onPair) {
  // The answer that this person is believed to like more than others do comes first.
  const turned = pair.own < pair.everyone,
    turn = (chance) => (chance === null || !turned ? chance : 1 - chance);
  const [liked, other] = turned ? [pair.second, pair.first] : [pair.first, pair.second];
  const [low, high] = turned ? [turn(pair.high), turn(pair.low)] : [pair.low, pair.high];
  const [own, everyone] = [turn(pair.own), turn(pair.everyone)];
  const button = make('button', { type: 'button' }, 'Is that so? Vote on this pair');
  button.addEventListener('click', () => onPair(pair));
  const range = low === null ? '' : ` (likely between ${percent(low)} and ${percent(high)})`;
  return make(
    'article',
    { class: 'contrast' },
    make('p', { class: 'quiet' }, promptText(pair.prompt, 160)),
    make('blockquote', { class: 'text', dir: 'auto' }, short(liked)),
    make(
      'p',
      {},
      `The chance that you choose this is ${percent(own)}${range}; of people in general, ${percent(everyone)}.`,
    ),
    make(
      'details',
      {},
      make('summary', {}, 'The other answer'),
      make('blockquote', { class: 'text', dir: 'auto' }, short(other)),
    ),
    make(
      'figure',
      {},
      drawing([{ name: '', value: own, low, high, other: everyone }], { low: 0, high: 1, words: percent }),
    ),
    button,
  );
}

const short = (text) => (text.length > 400 ? `${text.slice(0, 400)} …` : text);

function weights(belief) {
  const { weights: own, shared_weights: everyone, deviations } = belief;
  if (!Array.isArray(own) || !Array.isArray(everyone) || own.length < 2) return null;
  const rows = own.map((value, place) => {
    const spread = deviations ? SURE * deviations[place] : null;
    const range = spread === null ? { low: null, high: null } : { low: value - spread, high: value + spread };
    return { name: `direction ${place + 1}`, value, ...range, other: everyone[place] };
  });
  const far = (row) => Math.abs(row.value - row.other);
  const some = rows.length > LINES ? [...rows].sort((a, b) => far(b) - far(a)).slice(0, LINES) : rows;
  const ends = some.flatMap((row) => [row.value, row.other, row.low ?? row.value, row.high ?? row.value]);
  const edge = Math.max(...ends.map(Math.abs), 1e-6);
  const figure = dots('Weights of the directions', some, {
    low: -edge,
    high: edge,
    words: decimal,
    value: 'you',
    other: 'people in general',
  });
  return make(
    'div',
    {},
    make('h3', {}, 'The numbers behind it'),
    make(
      'p',
      { class: 'quiet' },
      'Each line is one of the ways in which tastes were found to differ. They were found from votes ' +
        'and have no names. Short bars mean that the service is sure.',
    ),
    figure,
  );
}

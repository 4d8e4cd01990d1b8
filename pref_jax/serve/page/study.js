// The page for whoever runs a study: how much is voted, how far people agree, and whether that changes.

import { Api, Refused } from './api.js';
import { columns } from './columns.js';
import { at, make, show, table, tell } from './dom.js';
import { forgetSession, keepSession, readSession } from './session.js';
import { count, decimal, interval, percent } from './words.js';

const DAY = 86400000,
  PEOPLE = 20;
const NAMES = {
  first: 'prefer one answer',
  second: 'prefer one answer',
  tie: 'equally good',
  both_bad: 'both bad',
  skip: 'skip',
};

function alarm({ what, users, before, lately, difference, low, high, alarm: rings }) {
  if (difference === null) return make('p', {}, `${what}: not enough votes to compare.`);
  const points = (x) => `${x >= 0.005 ? '+' : ''}${decimal(100 * x, 0)}`;
  const range = low === null ? 'too few people for an interval' : `95% interval ${points(low)} to ${points(high)}`;
  const level = what.startsWith('agreement') ? '' : `; ${percent(before)} before, ${percent(lately)} lately`;
  return make(
    'p',
    { class: rings ? 'alarm' : 'calm' },
    make('strong', {}, rings ? 'Alarm: ' : 'No alarm: '),
    `${what} changed by ${points(difference)} points (${range}; ${count(users, 'person', 'people')}${level}).`,
  );
}

function alphaWords({ value, low, high, units, values }) {
  if (value === null) return 'not known: needs pairs that several people voted on, and more than one kind of vote';
  const range = low === null ? '' : ` (95% interval ${decimal(low)} to ${decimal(high)})`;
  const from = `from ${count(values, 'vote')} on ${count(units, 'pair')}`;
  return `${decimal(value)}${range}, ${from}; 1 is full agreement, 0 is as by chance`;
}

function agreement({ alpha, itself, others, left, median_seconds: seconds }) {
  const rows = [
    ["Krippendorff's alpha", alphaWords(alpha)],
    ['Same vote as most others on the pair', interval(others)],
    ['Same vote again on a repeated pair', interval(itself)],
    ['The answer on the left was chosen', `${interval(left)}${left.of ? '; without a habit it is about half' : ''}`],
    ['Median time for a vote', seconds === null ? 'not known' : `${seconds.toFixed(1)} seconds`],
  ];
  return rows.flatMap(([name, said]) => [make('dt', {}, name), make('dd', {}, said)]);
}

function choices(found) {
  const rates = new Map();
  for (const [choice, { count: number, of }] of Object.entries(found)) {
    const name = NAMES[choice],
      [before] = rates.get(name) ?? [0];
    rates.set(name, [before + number, of]);
  }
  const rows = [...new Set(Object.values(NAMES))].map((name) => {
    const [number, of] = rates.get(name) ?? [0, 1];
    return [name, number, percent(number / of)];
  });
  return table('Kinds of votes', ['Kind', 'Votes', 'Share'], rows);
}

function days(found) {
  const rows = found.map(({ day, choices: own, users }) => ({
    name: new Date(day * DAY).toISOString().slice(0, 10),
    value: Object.values(own).reduce((a, b) => a + b, 0),
    users,
  }));
  return rows.length ? columns('Votes per day', rows) : make('p', {}, 'No votes yet.');
}

async function people(api) {
  const found = (await api.all('/v1/users', 'users')).sort((a, b) => b.votes - a.votes),
    some = found.slice(0, PEOPLE);
  const more = found.length > PEOPLE ? ` (the first ${PEOPLE} of ${found.length})` : '';
  return table(
    `Votes of each person${more}`,
    ['Person', 'Votes'],
    some.map(({ id, votes }) => [id, votes]),
  );
}

async function read() {
  const session = readSession(),
    api = new Api(session.key ?? '');
  tell(at('trouble'), '');
  try {
    const [found, who] = await Promise.all([api.get('/v1/study'), people(api)]);
    at('enter').hidden = true;
    at('study').hidden = false;
    at('total').textContent = `${count(found.votes, 'vote')} of ${count(found.users, 'person', 'people')}`;
    show(at('alarms'), ...found.figures.drift.map(alarm));
    show(at('agreement'), ...agreement(found.figures));
    show(at('days'), days(found.days));
    show(at('choices-table'), choices(found.figures.choices));
    show(at('people'), who);
  } catch (error) {
    const locked = error instanceof Refused && [401, 403].includes(error.status);
    tell(at('trouble'), `${error.message}.`);
    if (locked) {
      if (error.status === 401) forgetSession();
      at('study').hidden = true;
      at('enter').hidden = false;
      at('key').focus();
    }
  }
}

at('reload').addEventListener('click', read);
at('enter-form').addEventListener('submit', (event) => {
  event.preventDefault();
  keepSession({ ...readSession(), key: at('key').value.trim() });
  read();
});
read();

// How many votes were given, how many are wanted, and how long the rest will take at this person's own pace.

import { at } from './dom.js';
import { count, duration, median } from './words.js';

const GOAL = 20;

/** Shows progress; `left` is how many pairs there are yet, null if not known. */
export function showProgress(votes, left, goal) {
  const step = Number(goal) > 0 ? Number(goal) : GOAL;
  const most = left === null ? Infinity : votes.length + left;
  const aim = Math.min(most, Math.max(step, step * Math.ceil(votes.length / step)));
  const pace = median(votes.latencies()),
    rest = aim - votes.length;
  const time = pace === null || rest <= 0 ? '' : `, ${duration(pace * rest)} left`;
  const reached = rest <= 0 && votes.length > 0 ? '. Thank you! Go on if you like' : '';
  at('progress').max = Math.max(1, aim);
  at('progress').value = Math.min(votes.length, aim);
  at('progress-text').textContent = `${votes.length} of ${aim}${time}${reached}`;
  at('mine-count').textContent = votes.length
    ? `You have given ${count(votes.length, 'vote')}. Take a copy, or have them erased.`
    : 'You have given no votes yet.';
}

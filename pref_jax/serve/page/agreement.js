// How far this person agrees with themselves, on pairs that they saw again, and with most others.

import { userPath } from './api.js';
import { at, make, show } from './dom.js';
import { interval } from './words.js';

export async function showAgreement(api, user) {
  const { itself, others, at_least: least } = await api.get(`${userPath(user)}/agreement`);
  show(
    at('agreement'),
    make('dt', {}, 'Same vote again on a pair you saw before'),
    make('dd', {}, interval(itself)),
    make('dt', {}, `Same vote as most others, where at least ${least} of them voted`),
    make('dd', {}, interval(others)),
  );
}

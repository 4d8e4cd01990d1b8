// The pairs to show: fetched ahead, so that the next one is there at once and a lost connection does not stop anyone.
// Every tenth is a pair that was voted on before, to learn how steady votes are. Sides are drawn by chance each time.

import { userPath } from './api.js';

const AHEAD = 10,
  MOST = 100,
  EVERY = 10,
  APART = 3;
const FEW = 3;
const chance = () => crypto.getRandomValues(new Uint32Array(1))[0] / 2 ** 32;
const side = () => (chance() < 0.5 ? 'left' : 'right');

export class Questions {
  /** `waiting` tells how many votes the service may not know of yet. */
  constructor(api, user, pool, votes, waiting, storage = localStorage) {
    Object.assign(this, { api, user, pool, votes, waiting, storage, queue: [], why: '', left: null, version: null });
    this.name = `pref-question:${user}:${pool}`;
  }

  /** Asks for the next pairs; what was asked before the last votes is dropped. */
  async fill() {
    // The service may not know of the last votes yet.
    const count = Math.min(MOST, AHEAD + this.waiting());
    const found = await this.api.post(`${userPath(this.user)}/ask`, { pool: this.pool, count });
    Object.assign(this, { queue: found.pairs, why: found.why, left: found.left, version: found.model });
  }

  /** Whether so few pairs are left here that more should be asked for at once. */
  get low() {
    return this.left !== 0 && this.queue.filter((pair) => !this.votes.has(pair.id)).length < FEW;
  }

  /** The question on display when the page was left, or the next one; null if there is none here. */
  current() {
    const kept = JSON.parse(this.storage.getItem(this.name) ?? 'null');
    if (!kept) return this.next();
    // Another tab may have shown it and had the answer.
    const again = ['repeat', 'own_choice'].includes(kept.asked);
    return again || !this.votes.has(kept.pair) ? kept : this.next();
  }

  next() {
    const found = this.repeated() ?? this.fresh();
    this.put(found);
    return found;
  }

  /** Keeps a question as the one on display. */
  put(question) {
    if (question) this.storage.setItem(this.name, JSON.stringify(question));
    else this.storage.removeItem(this.name);
  }

  fresh() {
    const pair = this.queue.find((one) => !this.votes.has(one.id));
    this.queue = this.queue.filter((one) => one !== pair && !this.votes.has(one.id));
    if (!pair) return null;
    const { id, prompt, first, second, information, asked } = pair;
    return { pair: id, prompt, first, second, information, asked, why: this.why, shown: side(), version: this.version };
  }

  repeated() {
    if ((this.votes.length + 1) % EVERY) return null;
    const all = this.votes.votes,
      again = new Set(all.filter((vote) => vote.asked === 'repeat').map((vote) => vote.pair));
    const can = all.slice(0, -APART).filter((vote) => vote.pair && vote.choice !== 'skip' && !again.has(vote.pair));
    return can.length ? asQuestion(can[Math.floor(chance() * can.length)], 'repeat') : null;
  }
}

const asQuestion = ({ pair, prompt, first, second }, asked) => ({
  pair,
  prompt,
  first,
  second,
  information: null,
  asked,
  why: '',
  shown: side(),
  version: null,
});

/** A pair as a question that the user chose to answer. */
export const chosenQuestion = (pair) => asQuestion({ ...pair, pair: pair.id }, 'own_choice');

/** A vote that was taken back as the question that it answered. */
export const undoneQuestion = (vote) => ({
  ...asQuestion(vote, vote.asked ?? 'undone'),
  shown: vote.shown ?? side(),
  version: vote.model_version ?? null,
  why: 'You took your vote on it back.',
});

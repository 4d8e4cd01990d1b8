// The votes of this user in their order: those that the service has, and those that still wait here.

import { Refused, userPath } from './api.js';

export class History {
  constructor(votes = []) {
    this.votes = votes;
  }

  /** What the service has, with what waits added and what is taken back left out. */
  static async load(api, user, outbox) {
    let stored = [];
    try {
      stored = await api.all(`${userPath(user)}/votes`, 'votes');
    } catch (error) {
      // Who has never voted is not known.
      if (!(error instanceof Refused && error.status === 404)) throw error;
    }
    const gone = outbox.undone(),
      known = new Set(stored.map((vote) => vote.id));
    const waiting = outbox.votes().filter((vote) => !known.has(vote.id));
    return new History([...stored.filter((vote) => !gone.has(vote.id)), ...waiting]);
  }

  get length() {
    return this.votes.length;
  }

  add(vote) {
    this.votes.push(vote);
  }

  /** Takes the last vote out and returns it; undefined if there is none. */
  pop() {
    return this.votes.pop();
  }

  drop(id) {
    this.votes = this.votes.filter((vote) => vote.id !== id);
  }

  has(pair) {
    return this.votes.some((vote) => vote.pair === pair);
  }

  latencies() {
    return this.votes
      .slice(-50)
      .map((vote) => vote.latency)
      .filter((latency) => latency !== null && latency !== undefined);
  }
}

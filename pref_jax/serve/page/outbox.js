// Votes and undos on their way to the service, kept in this browser until it has them. They go one by one, in order,
// each as often as it takes: a vote has an id made here, so that sending it twice stores it once, and taking one back
// that is not there does no harm. Of several tabs one sends at a time.

import { Refused, Unreachable, userPath } from './api.js';

const FIRST = 1,
  LONGEST = 30;

export class Outbox extends EventTarget {
  /** Events: change, stored, refused {message, vote}, locked {message} (no key, or not this user's). */
  constructor(api, user, storage = localStorage) {
    super();
    Object.assign(this, {
      api,
      user,
      storage,
      name: `pref-outbox:${user}`,
      running: false,
      again: false,
      stopped: false,
      unkept: null,
      wait: FIRST,
    });
    addEventListener('online', () => this.flush());
  }

  /** What waits: {kind: 'vote', vote} or {kind: 'undo', id}. */
  items() {
    return this.unkept ?? JSON.parse(this.storage.getItem(this.name) ?? '[]');
  }

  /** Votes that wait and are not taken back. */
  votes() {
    const items = this.items(),
      gone = new Set(items.filter((item) => item.kind === 'undo').map((item) => item.id));
    return items.filter((item) => item.kind === 'vote' && !gone.has(item.vote.id)).map((item) => item.vote);
  }

  /** Ids of votes that are to be taken back. */
  undone() {
    return new Set(
      this.items()
        .filter((item) => item.kind === 'undo')
        .map((item) => item.id),
    );
  }

  add(vote) {
    this.keep([...this.items(), { kind: 'vote', vote }]);
    return this.flush();
  }

  /** Takes a vote back; one that was never sent just goes. */
  undo(id) {
    const items = this.items(),
      place = items.findIndex((item) => item.kind === 'vote' && item.vote.id === id);
    if (place >= 0 && !items[place].tried) items.splice(place, 1);
    else items.push({ kind: 'undo', id });
    this.keep(items);
    return this.flush();
  }

  /** Sends nothing more, and returns once what is being sent has arrived; what waits stays for the next visit. */
  async stop() {
    this.stopped = true;
    clearTimeout(this.timer);
    await this.done;
  }

  /** Forgets what waits. */
  clear() {
    this.keep([]);
  }

  keep(items) {
    try {
      if (items.length) this.storage.setItem(this.name, JSON.stringify(items));
      else this.storage.removeItem(this.name);
      this.unkept = null;
    } catch {
      // The browser has no room for it: then they last as long as this tab.
      this.unkept = items;
    }
    this.dispatchEvent(new Event('change'));
  }

  /** Sends what waits; returns once all is sent, or it cannot be now. */
  flush() {
    this.again = true;
    if (!this.running) this.done = this.run();
    return this.done;
  }

  async run() {
    this.running = true;
    clearTimeout(this.timer);
    try {
      do {
        this.again = false;
        await this.alone(() => this.sendAll());
      } while (this.again);
      this.wait = FIRST;
    } catch (error) {
      this.later(error);
    } finally {
      this.running = false;
    }
  }

  /** Runs with no other tab sending; browsers without locks are those of unsafe addresses. */
  alone(work) {
    return navigator.locks ? navigator.locks.request(this.name, work) : work();
  }

  async sendAll() {
    for (let [item] = this.items(); item && !this.stopped; [item] = this.items()) {
      const [first, ...rest] = this.items();
      this.keep([{ ...first, tried: true }, ...rest]);
      await this.send(item);
      this.keep(this.items().slice(1));
      this.dispatchEvent(new Event('stored'));
    }
  }

  async send(item) {
    const path = `${userPath(this.user)}/votes`;
    try {
      if (item.kind === 'vote') await this.api.post(path, item.vote);
      else await this.api.remove(`${path}/${encodeURIComponent(item.id)}`);
    } catch (error) {
      const is = (...statuses) => error instanceof Refused && statuses.includes(error.status);
      if (!(error instanceof Refused) || error.retry !== null || is(401, 403)) throw error;
      if (item.kind === 'undo' && is(404)) return;
      this.dispatchEvent(new CustomEvent('refused', { detail: { message: error.message, vote: item.vote } }));
    }
  }

  later(error) {
    if (this.stopped) return;
    if (error instanceof Refused && error.retry === null) {
      this.dispatchEvent(new CustomEvent('locked', { detail: { message: error.message } }));
      return;
    }
    if (!(error instanceof Refused || error instanceof Unreachable)) throw error;
    const seconds = Math.max(this.wait, error.retry ?? 0);
    this.wait = Math.min(2 * this.wait, LONGEST);
    this.timer = setTimeout(() => this.flush(), 1000 * seconds);
  }
}

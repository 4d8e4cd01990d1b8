// Requests to the service this page came from. Nothing else is ever asked.

const SECONDS = 30;

/** The service refused: its status, its message, and seconds after which to try again (null: do not). */
export class Refused extends Error {
  constructor(status, message, retry) {
    super(message);
    this.status = status;
    this.retry = retry;
  }
}

/** The service could not be reached. */
export class Unreachable extends Error {}

export class Api {
  /** Requests with a key; an empty one where the service needs none. */
  constructor(key = '') {
    this.key = key;
  }

  /** The answer to a request, as JSON. */
  async call(method, path, body = undefined) {
    const headers = {};
    if (body !== undefined) headers['Content-Type'] = 'application/json';
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    let answer, found;
    try {
      answer = await fetch(path, {
        method,
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
        cache: 'no-store',
        credentials: 'omit',
        signal: AbortSignal.timeout(1000 * SECONDS),
      });
      found = await answer.json();
    } catch {
      throw new Unreachable('the service cannot be reached');
    }
    if (answer.ok) return found;
    const again = answer.status >= 500 || answer.status === 429 || answer.status === 408;
    const wait = Number(answer.headers.get('Retry-After')) || 2;
    throw new Refused(answer.status, found?.error?.message ?? 'the service refused', again ? wait : null);
  }

  get(path) {
    return this.call('GET', path);
  }

  post(path, body) {
    return this.call('POST', path, body);
  }

  remove(path) {
    return this.call('DELETE', path);
  }

  /** Everything of a list that comes in pages, at most so many. */
  async all(path, field, most = Infinity) {
    const found = [];
    for (let after = null; ;) {
      const page = await this.get(`${path}?limit=1000${after === null ? '' : `&after=${encodeURIComponent(after)}`}`);
      found.push(...page[field]);
      after = page.next;
      if (after === null || found.length >= most) return found;
    }
  }
}

/** The address of a user. */
export const userPath = (user) => `/v1/users/${encodeURIComponent(user)}`;

// Who votes, with which key, on which questions: from the address (#user=...&key=...&pool=...&goal=...), kept for this
// tab alone. The address is cleared, so that a key stays in no history.

const NAME = 'pref-session';

/** What is known of who votes: {user, key, pool, goal}. */
export function readSession() {
  const known = JSON.parse(sessionStorage.getItem(NAME) ?? '{}');
  const given = new URLSearchParams(location.hash.slice(1));
  if (!['user', 'key', 'pool', 'goal'].some((name) => given.has(name))) return known;
  history.replaceState(null, '', location.pathname + location.search);
  const kept = given.has('user') && given.get('user') !== known.user ? {} : known;
  const found = { ...kept, ...Object.fromEntries(given) };
  keepSession(found);
  return found;
}

export function keepSession(session) {
  sessionStorage.setItem(NAME, JSON.stringify(session));
}

export function forgetSession() {
  sessionStorage.removeItem(NAME);
}

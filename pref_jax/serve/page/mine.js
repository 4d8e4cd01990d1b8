// A person's own votes: a copy of them as JSON lines, and their erasure.

import { userPath } from './api.js';
import { at } from './dom.js';
import { count } from './words.js';

const KEPT = ['id', 'shown', 'asked', 'pair', 'latency', 'page_version', 'model_version', 'received'];
const OUTCOMES = { tie: 'tie', both_bad: 'both_bad', skip: 'skipped' };

/** One vote as a line that `pref train` reads, as `pref store export --provenance` writes it. */
export function asLine(user, vote) {
  const line = { user, prompt: vote.prompt };
  if (vote.choice in OUTCOMES) {
    Object.assign(line, { responses: [vote.first, vote.second], outcome: OUTCOMES[vote.choice] });
  } else {
    const [chosen, rejected] = vote.choice === 'first' ? [vote.first, vote.second] : [vote.second, vote.first];
    Object.assign(line, { chosen, rejected });
  }
  if (vote.strength !== null) line.strength = vote.strength;
  line.time = vote.time ?? vote.received;
  for (const name of KEPT) if (vote[name] !== null && vote[name] !== undefined) line[name] = vote[name];
  return line;
}

/** Hands the person a file of what the service has of them. */
export async function download(api, user, outbox) {
  await outbox.flush();
  const votes = await api.all(`${userPath(user)}/votes`, 'votes'),
    waiting = outbox.items().length;
  const text = votes.map((vote) => `${JSON.stringify(asLine(user, vote))}\n`).join('');
  const address = URL.createObjectURL(new Blob([text], { type: 'application/jsonl' }));
  const link = Object.assign(document.createElement('a'), {
    href: address,
    download: `votes-${user.replace(/[^\w-]+/g, '_')}.jsonl`,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
  at('mine-said').textContent =
    `${count(votes.length, 'vote')} downloaded.` +
    (waiting ? ` ${count(waiting, 'change')} of yours not sent yet and not in it.` : '');
}

/** Asks whether to erase, and does; returns what was removed, or null. */
export async function erase(api, user, outbox) {
  const dialog = at('erase-dialog');
  dialog.returnValue = 'keep';
  dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener('close', resolve, { once: true }));
  if (dialog.returnValue !== 'erase') return null;
  await outbox.stop();
  const removed = await api.remove(userPath(user));
  outbox.clear();
  return removed;
}

/** What was erased, in words. */
export function erasedWords({ votes, texts, keys, wiped, model }) {
  const also = keys ? ` and ${count(keys, 'key')}` : '';
  const saved = model.saved ? '' : ` The saved model still knows you: ${model.why}`;
  const traces = wiped === false ? ' Traces in the database file go when it is next cleaned.' : '';
  return `Erased: ${count(votes, 'vote')}, ${count(texts, 'text')}${also}.${saved}${traces}`;
}

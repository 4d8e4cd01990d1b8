// The page where people vote: puts the parts together.

import { showAgreement } from './agreement.js';
import { Api, Refused } from './api.js';
import { at, make, show, tell } from './dom.js';
import { History } from './history.js';
import { download, erase, erasedWords } from './mine.js';
import { Outbox } from './outbox.js';
import { showProgress } from './progress.js';
import { chosenQuestion, Questions, undoneQuestion } from './questions.js';
import { Ranking } from './ranking.js';
import { forgetSession, keepSession, readSession } from './session.js';
import { showNoTaste, showTaste } from './taste.js';
import { inWords, Voting } from './voting.js';
import { count } from './words.js';

const VERSION = document.documentElement.dataset.version;
// Milliseconds without a vote before beliefs are asked for, and before a failed request is sent again.
const QUIET = 250,
  AGAIN = 4000;
const voting = new Voting();
let work = null;

const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, '0')).join('');

/** Where the user says who they are. */
function enter(message = '') {
  tell(at('trouble'), message);
  at('enter').hidden = false;
  at('work').hidden = at('leave').hidden = true;
  at('who').textContent = '';
  at('user').focus();
}

class Work {
  /** One person voting on one pool. */
  constructor(session) {
    const api = new Api(session.key ?? ''),
      outbox = new Outbox(api, session.user);
    Object.assign(this, { session, api, outbox, user: session.user, timer: 0, turn: 0 });
    this.ranking = new Ranking(api, session.user);
    outbox.addEventListener('change', () => this.showWaiting());
    outbox.addEventListener('stored', () => this.soon());
    outbox.addEventListener('refused', ({ detail }) => this.refused(detail));
    outbox.addEventListener('locked', ({ detail }) =>
      tell(at('trouble'), `${detail.message}. Your votes wait on this device.`),
    );
  }

  async start() {
    const { pools } = await this.api.get('/v1/pools'),
      names = Object.keys(pools);
    if (!names.length)
      throw new Refused(404, 'There are no questions here yet. Whoever runs this service adds them.', null);
    this.pool = names.includes(this.session.pool) ? this.session.pool : names[0];
    this.session.pool = this.pool;
    keepSession(this.session);
    this.history = await History.load(this.api, this.user, this.outbox);
    this.questions = new Questions(this.api, this.user, this.pool, this.history, () => this.outbox.votes().length);
    await this.questions.fill();
    // Whoever came by the form would stand nowhere, as it goes.
    if (!at('enter').hidden) at('main').focus({ preventScroll: true });
    at('enter').hidden = true;
    at('work').hidden = at('leave').hidden = false;
    at('who').textContent = `You vote as ${this.user}`;
    at('pool-row').hidden = names.length < 2;
    show(at('pool'), ...names.map((name) => make('option', { value: name, selected: name === this.pool }, name)));
    tell(at('trouble'), '');
    this.showQuestion(this.questions.current());
    this.showWaiting();
    this.outbox.flush();
    await this.ranking.load(this.pool);
    await this.showBeliefs();
  }

  showQuestion(question) {
    const none =
      this.questions.left === 0
        ? 'You have voted on every pair here. Thank you!'
        : 'The next pair comes as soon as the service answers.';
    voting.show(question, none);
    at('undo').disabled = !this.history.length;
    showProgress(this.history, this.questions.left, this.session.goal);
  }

  vote({ choice, question, latency }) {
    const chosen =
      { [question.shown]: 'first', [question.shown === 'left' ? 'right' : 'left']: 'second' }[choice] ?? choice;
    const vote = {
      id: newId(),
      prompt: question.prompt,
      first: question.first,
      second: question.second,
      choice: chosen,
      shown: question.shown,
      asked: question.asked,
      pair: question.pair,
      latency,
      page_version: VERSION,
      model_version: question.version,
      time: Date.now() / 1000,
    };
    const before = this.history.votes.findLast((one) => one.pair === question.pair);
    this.history.add(vote);
    if (this.questions.left && !before) this.questions.left -= 1;
    this.outbox.add(vote);
    this.showQuestion(this.questions.next());
    if (this.questions.low) this.more().catch((error) => this.trouble(error));
    const again =
      question.asked !== 'repeat' || !before
        ? ''
        : ` You saw that pair before and said ${before.choice === chosen ? 'the same' : 'something else'} then.`;
    voting.say(`Your vote: ${inWords(choice)}.${again}`);
  }

  undo() {
    const vote = this.history.pop();
    if (!vote) return;
    this.outbox.undo(vote.id);
    const question = undoneQuestion(vote);
    this.questions.put(question);
    this.showQuestion(question);
    voting.say('Your last vote is taken back. Vote on it again, or skip it.');
  }

  choosePair(pair) {
    const question = chosenQuestion(pair);
    this.questions.put(question);
    this.showQuestion(question);
    voting.say('The pair that you chose.');
    at('question-title').scrollIntoView({ block: 'start' });
    at('main').focus({ preventScroll: true });
  }

  refused({ message, vote }) {
    if (vote) this.history.drop(vote.id);
    tell(at('trouble'), `A vote was not taken: ${message}`);
    this.soon();
  }

  showWaiting() {
    const waiting = this.outbox.items().length;
    at('waiting').textContent =
      waiting > 1 || (waiting && !navigator.onLine)
        ? `${count(waiting, 'change')} on the way to the service; kept on this device until then.`
        : '';
  }

  /** What is shown of the service is asked for again once votes have stopped coming for a moment. */
  soon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.refresh().catch((error) => this.trouble(error)), QUIET);
  }

  async more() {
    await this.questions.fill();
    if (!voting.question) this.showQuestion(this.questions.next());
  }

  async refresh() {
    const turn = ++this.turn;
    await this.more();
    if (turn !== this.turn) return;
    showProgress(this.history, this.questions.left, this.session.goal);
    await this.showBeliefs();
  }

  /** One part that cannot be shown leaves the other. */
  async showBeliefs() {
    for (const part of [() => this.ranking.update(), () => this.showTaste()])
      await part().catch((error) => this.trouble(error));
  }

  async showTaste() {
    try {
      await showTaste(this.api, this.user, this.pool, (pair) => this.choosePair(pair));
      await showAgreement(this.api, this.user);
    } catch (error) {
      if (!(error instanceof Refused && error.status === 404)) throw error;
      showNoTaste();
    }
  }

  /** A lost connection, or a busy service, is tried again; the rest is told. */
  trouble(error) {
    if (error instanceof Refused && error.retry === null) {
      tell(at('trouble'), error.message);
    } else if (work === this) {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.soon(), AGAIN);
    }
  }
}

async function begin(session) {
  work?.outbox.stop();
  keepSession(session);
  work = new Work(session);
  try {
    await work.start();
  } catch (error) {
    if (!at('work').hidden) {
      work.trouble(error);
      return;
    }
    const asked = error instanceof Refused && error.status === 401;
    enter(asked ? `This service needs a key. ${error.message}.` : `${error.message}.`.replace(/\.\.$/, '.'));
  }
}

function leave(message = '') {
  work?.outbox.stop();
  work = null;
  forgetSession();
  at('enter-form').reset();
  enter(message);
}

async function eraseAll() {
  try {
    const removed = await erase(work.api, work.user, work.outbox);
    if (!removed) return;
    for (const name of Object.keys(localStorage)) {
      if (name.startsWith(`pref-question:${work.user}:`)) localStorage.removeItem(name);
    }
    leave(erasedWords(removed));
  } catch (error) {
    await begin(work.session);
    tell(at('trouble'), `Nothing was erased: ${error.message}`);
  }
}

voting.addEventListener('vote', ({ detail }) => work.vote(detail));
voting.addEventListener('undo', () => work.undo());
at('leave').addEventListener('click', () => leave());
at('erase').addEventListener('click', eraseAll);
at('export').addEventListener('click', () =>
  download(work.api, work.user, work.outbox).catch((error) => work.trouble(error)),
);
at('pool').addEventListener('change', () => begin({ ...work.session, pool: at('pool').value }));
at('enter-form').addEventListener('submit', (event) => {
  event.preventDefault();
  begin({ ...readSession(), user: at('user').value.trim(), key: at('key').value.trim() });
});
addEventListener('hashchange', () => /[#&](user|key|pool|goal)=/.test(location.hash) && location.reload());

const known = readSession();
if (known.user) begin(known);
else enter();

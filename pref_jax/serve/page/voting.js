// The pair on display, the buttons and keys to vote with, and how long it was looked at.

import { at, promptElements, promptText, show, tell } from './dom.js';

const KEYS = {
  ArrowLeft: 'left',
  1: 'left',
  ArrowRight: 'right',
  2: 'right',
  0: 'tie',
  '=': 'tie',
  b: 'both_bad',
  s: 'skip',
};
const SINGLE = 'pref-single-keys';
const SAID = { left: 'A is better', right: 'B is better', tie: 'equally good', both_bad: 'both bad', skip: 'skipped' };

/** Why a pair was asked, in words. */
function reason(question) {
  if (question.asked === 'repeat') return 'You will be told after your vote, so that it does not sway you.';
  if (question.asked === 'own_choice') return 'You chose it yourself.';
  if (question.information !== null && question.information !== undefined) {
    const bits = question.information / Math.LN2;
    const worth =
      bits < 0.005 ? 'almost nothing new' : `about ${bits.toFixed(2)} of the 1 bit that a yes or no can tell`;
    return `Of the pairs you have not seen, your answer to this one should tell most about your taste: ${worth}.`;
  }
  return question.why
    ? `${question.why[0].toUpperCase()}${question.why.slice(1)}${/[.!]$/.test(question.why) ? '' : '.'}`
    : '';
}

export class Voting extends EventTarget {
  /** Events: vote {choice, question, latency}, undo. */
  constructor() {
    super();
    this.question = null;
    for (const button of at('choices').querySelectorAll('[data-choice]')) {
      button.addEventListener('click', () => this.choose(button.dataset.choice));
    }
    at('undo').addEventListener('click', () => this.dispatchEvent(new Event('undo')));
    document.addEventListener('keydown', (event) => this.key(event));
    document.addEventListener('visibilitychange', () => this.look());
    this.help();
  }

  help() {
    const keys = at('keys-on');
    keys.checked = localStorage.getItem(SINGLE) !== 'off';
    keys.addEventListener('change', () => localStorage.setItem(SINGLE, keys.checked ? 'on' : 'off'));
    at('help-open').addEventListener('click', () => at('help').showModal());
  }

  key(event) {
    const typing =
      event.target.closest?.('input, select, textarea, dialog, .wide') || document.querySelector('dialog[open]');
    if (typing || at('work').hidden || event.repeat || event.altKey) return;
    const undo = (event.ctrlKey || event.metaKey) && !event.shiftKey && event.key.toLowerCase() === 'z';
    if (!undo && (event.ctrlKey || event.metaKey || !at('keys-on').checked)) return;
    const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (undo || pressed === 'u') this.dispatchEvent(new Event('undo'));
    else if (pressed === '?') at('help').showModal();
    else if (KEYS[pressed]) this.choose(KEYS[pressed]);
    else return;
    event.preventDefault();
  }

  /** Time that passes while the page is hidden is not counted. */
  look() {
    if (document.hidden) this.looked += performance.now() - this.since;
    this.since = performance.now();
  }

  choose(choice) {
    const question = this.question;
    if (!question) return;
    const milliseconds = this.looked + (document.hidden ? 0 : performance.now() - this.since);
    this.question = null;
    this.dispatchEvent(new CustomEvent('vote', { detail: { choice, question, latency: milliseconds / 1000 } }));
  }

  /** Shows a question; null: there is none, for this reason. */
  show(question, otherwise = '') {
    this.question = question;
    Object.assign(this, { looked: 0, since: performance.now() });
    at('answers').hidden = !question;
    for (const button of at('choices').querySelectorAll('[data-choice]')) button.disabled = !question;
    at('question-title').textContent = question ? 'The question' : 'No question now';
    if (!question) {
      show(at('prompt'), otherwise);
      tell(at('why'), '');
      at('why').parentElement.hidden = true;
      return;
    }
    show(at('prompt'), ...promptElements(question.prompt));
    const sides = question.shown === 'left' ? ['first', 'second'] : ['second', 'first'];
    at('left').textContent = question[sides[0]];
    at('right').textContent = question[sides[1]];
    at('why').textContent = reason(question);
    at('why').hidden = false;
    at('why').parentElement.hidden = false;
  }

  /** What happened, also for those who listen; then the question that is there now. */
  say(text) {
    const question = this.question ? ` The question now: ${promptText(this.question.prompt)}` : '';
    const next = ` ${at('progress-text').textContent}.${question}`;
    show(at('said'), text, Object.assign(document.createElement('span'), { className: 'heard', textContent: next }));
  }
}

/** A vote in words. */
export const inWords = (choice) => SAID[choice];

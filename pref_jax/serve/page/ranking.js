// Answers to one question as this person is believed to rank them, ordered again before their eyes after each vote.

import { at, make, promptText, show } from './dom.js';

const PAIRS = 1000,
  PROMPTS = 20,
  MOST = 12;
const key = JSON.stringify;

export class Ranking {
  constructor(api, user) {
    Object.assign(this, { api, user, prompts: [], order: null });
    at('ranking-prompt').addEventListener('change', () => {
      this.order = null;
      this.update().catch(() => {});
    });
  }

  /** Reads a pool for the questions that have most answers. */
  async load(pool) {
    const pairs = await this.api.all(`/v1/pools/${encodeURIComponent(pool)}`, 'pairs', PAIRS),
      found = new Map();
    for (const { prompt, first, second } of pairs) {
      const name = key(prompt);
      if (!found.has(name)) found.set(name, { prompt, responses: new Set() });
      found.get(name).responses.add(first).add(second);
    }
    this.prompts = [...found.values()]
      .sort((a, b) => b.responses.size - a.responses.size)
      .slice(0, PROMPTS)
      .map(({ prompt, responses }) => ({ prompt, responses: [...responses].slice(0, MOST) }));
    this.order = null;
    show(
      at('ranking-prompt'),
      ...this.prompts.map(({ prompt }, place) => make('option', { value: place }, promptText(prompt, 70))),
    );
  }

  async update() {
    const chosen = this.prompts[Number(at('ranking-prompt').value)];
    if (!chosen) return;
    const found = await this.api.post('/v1/rank', { user: this.user, ...chosen, unknown: 'shared' });
    if (chosen !== this.prompts[Number(at('ranking-prompt').value)]) return;
    this.show(found.ranking.map((place) => chosen.responses[place]));
  }

  show(order) {
    const list = at('ranking'),
      before = this.order,
      tops = new Map();
    for (const item of list.children) tops.set(item.dataset.text, item.getBoundingClientRect().top);
    show(list, ...order.map((text, place) => rankedItem(text, before ? before.indexOf(text) - place : 0)));
    this.order = order;
    if (!before || matchMedia('(prefers-reduced-motion: reduce)').matches) return;
    for (const item of list.children) {
      const moved = tops.get(item.dataset.text) - item.getBoundingClientRect().top;
      if (moved)
        item.animate([{ transform: `translateY(${moved}px)` }, { transform: 'none' }], {
          duration: 450,
          easing: 'ease-in-out',
        });
    }
  }
}

function rankedItem(text, up) {
  const words = up > 0 ? `▲ up ${up}` : `▼ down ${-up}`;
  const moved = up ? make('span', { class: up > 0 ? 'up' : 'down' }, words) : null;
  const item = make('li', {}, make('div', { class: 'text clamp', dir: 'auto' }, text), moved);
  item.dataset.text = text;
  return item;
}

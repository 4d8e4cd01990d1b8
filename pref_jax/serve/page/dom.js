// Elements made of names and texts. Texts become text nodes, never HTML: whatever an answer holds is shown as it is.

const SVG = 'http://www.w3.org/2000/svg';

/** The element of an id. */
export const at = (id) => document.getElementById(id);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(name, value === true ? '' : String(value));
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** An element with attributes and children (elements or texts). */
export const make = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

/** The same in a drawing. */
export const draw = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

/** Puts children in place of what an element holds. */
export function show(element, ...children) {
  element.replaceChildren(...children.filter((child) => child !== null));
}

/** The same for what changes by itself: not under somebody's hands, and what was folded out stays so. */
export function refill(element, ...children) {
  if (element.contains(document.activeElement)) return;
  const open = [...element.querySelectorAll('details')].map((details) => details.open);
  show(element, ...children);
  element.querySelectorAll('details').forEach((details, place) => {
    details.open = open[place] ?? false;
  });
}

/** Shows a message, or hides its element where there is none. */
export function tell(element, text) {
  element.textContent = text;
  element.hidden = !text;
}

/** A table of rows of cells; the first cell of a row is its heading. */
export function table(caption, head, rows) {
  const line = (cells) =>
    make(
      'tr',
      {},
      make('th', { scope: 'row' }, String(cells[0])),
      ...cells.slice(1).map((cell) => make('td', {}, String(cell))),
    );
  return make(
    'table',
    {},
    make('caption', {}, caption),
    make('thead', {}, make('tr', {}, ...head.map((name) => make('th', { scope: 'col' }, name)))),
    make('tbody', {}, ...rows.map(line)),
  );
}

/** A prompt: a text, or messages of a conversation. */
export function promptElements(prompt) {
  if (typeof prompt === 'string') return [make('div', { class: 'text', dir: 'auto' }, prompt)];
  const names = { user: 'Question', assistant: 'Answer', system: 'Instruction', tool: 'Tool' };
  if (prompt.length === 1 && prompt[0].role === 'user') return promptElements(prompt[0].content);
  return prompt.map((message) =>
    make(
      'div',
      { class: 'message' },
      make('p', { class: 'role' }, names[message.role] ?? message.role),
      make('div', { class: 'text', dir: 'auto' }, message.content),
    ),
  );
}

/** A prompt as one line of text. */
export function promptText(prompt, most = 200) {
  const whole = typeof prompt === 'string' ? prompt : (prompt.at(-1)?.content ?? '');
  return whole.length > most ? `${whole.slice(0, most)} …` : whole;
}

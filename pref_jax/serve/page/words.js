// Numbers in words.

/** A number with so many decimals, a true minus and no minus before nothing. */
export const decimal = (number, places = 2) =>
  number
    .toFixed(places)
    .replace(/^-(?=[0.]*$)/, '')
    .replace('-', '−');

/** A share as percent. */
export function percent(share) {
  const whole = Math.round(100 * share);
  if (whole === 0 && share > 0) return 'under 1%';
  return whole === 100 && share < 1 ? 'over 99%' : `${whole}%`;
}

/** One of a thing, or several. */
export const count = (number, one, several = `${one}s`) => `${number} ${number === 1 ? one : several}`;

/** The median; null of nothing. */
export function median(numbers) {
  if (!numbers.length) return null;
  const sorted = [...numbers].sort((a, b) => a - b),
    half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/** How long something will take. */
export function duration(seconds) {
  if (seconds < 45) return 'less than a minute';
  const minutes = Math.round(seconds / 60);
  return minutes < 60
    ? `about ${count(Math.max(1, minutes), 'minute')}`
    : `about ${count(Math.round(minutes / 60), 'hour')}`;
}

/** A share with its interval, as a sentence's end. */
export function interval(share) {
  if (!share.of) return 'nothing to compare yet';
  const range = share.of < 5 ? '' : ` (likely between ${percent(share.low)} and ${percent(share.high)})`;
  return `${share.count} of ${share.of}${range}`;
}

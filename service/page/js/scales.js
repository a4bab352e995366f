// From counts to colours.

import { percent } from "./format.js";
import { palette } from "./palette.js";

const OCTAVES = 2; // the deviation's scale ends at a quarter and at four times a fair share

/** @typedef {{palette: () => Uint32Array, value: (ratio: number, share: number) => number, low: string, high: string}} Scale */

/** Deviation from a fair share, in octaves. @returns {Scale} */
export const deviation = () => ({
  palette: () => palette("diverging"),
  value: (ratio) => (Math.log2(ratio) + OCTAVES) / (2 * OCTAVES),
  low: "¼× a fair share or less",
  high: "4× or more",
});

/** Shares from 0 up to `most`. @returns {Scale} */
export const share = (most) => ({
  palette: () => palette("sequential"),
  value: (_ratio, part) => part / most,
  low: "0 %",
  high: `${percent(most)} or more`,
});

/** Differences of shares, as parts of a fair share, from -most to most. @returns {Scale} */
export const difference = (most) => ({
  palette: () => palette("diverging"),
  value: (ratio) => (ratio / most + 1) / 2,
  low: `${most}× a fair share less`,
  high: `${most}× more`,
});

/** The next of 1, 2, 5, 10, ... times a power of ten. */
export function roundUp(x) {
  if (!(x > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(x));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= x * (1 - 1e-9)) ?? x;
}

/** The q-quantile of numbers, NaN left out; 0 of none. */
export function quantile(values, q) {
  const known = Float64Array.from(values.filter((v) => v === v)).sort();
  return known.length ? known[Math.min(known.length - 1, Math.floor(q * known.length))] : 0;
}

/** Labels of columns that are ids: about every tenth of them, in round steps. */
export function idTicks(columns, first = 0) {
  const step = Math.max(1, roundUp(columns / 16));
  const whole = columns <= 32 ? 1 : step >= 8 ? Math.round(step / 8) * 8 : Math.ceil(step);
  return Array.from({ length: Math.ceil(columns / whole) }, (_, i) => ({ at: i * whole, text: `${first + i * whole}` }));
}

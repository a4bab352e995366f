// A trace as grids: experts by layer and position. Pure; nothing here touches the document.

import { AGAIN, MISSING, PRESENT } from "./columnmarks.js";
import { palette } from "./palette.js";
import { idTicks } from "./scales.js";

/** Positions shown at once. */
export const SPAN = 256;
/** Experts of one layer shown at once. */
export const MOST_EXPERTS = 40;

/**
 * @typedef {object} Trace an answer of /v1/traces/{id}
 * @property {number} first_position
 * @property {number[]} layers
 * @property {number[]} num_experts of each layer
 * @property {number[]} top_k of each layer
 * @property {number[]} times_computed of each position
 * @property {number[][][]} routed_experts [positions, layers, top_k]; -1 is none
 * @property {number} prompt_tokens
 */

/** The experts of a cell, without the filling. @param {Trace} trace */
export const expertsAt = (trace, layer, at) => trace.routed_experts[at][layer].filter((id) => id >= 0);

/** How many experts two choices have in common. */
export const inCommon = (a, b) => a.reduce((n, id) => n + (b.includes(id) ? 1 : 0), 0);

/** What the position axis of all grids of a trace has: ticks, the end of the prompt, marks. @param {Trace} trace */
export function axis(trace) {
  const begin = trace.prompt_tokens - trace.first_position;
  const columns = trace.times_computed.length;
  return {
    columns,
    ticks: idTicks(columns, trace.first_position),
    breaks: begin > 0 && begin < columns ? [begin] : [],
    columnMarks: Uint8Array.from(trace.times_computed, (n) => (n === 0 ? MISSING : n > 1 ? AGAIN : PRESENT)),
  };
}

/** Values of a grid of layers x positions from a function of (layer's index, position's index). */
function cells(trace, value) {
  const columns = trace.times_computed.length;
  const values = new Float32Array(trace.layers.length * columns).fill(NaN);
  for (let row = 0; row < trace.layers.length; row++)
    for (let at = 0; at < columns; at++) if (trace.times_computed[at]) values[row * columns + at] = value(row, at);
  return { rows: trace.layers.map(String), values, palette: () => palette("sequential"), ...axis(trace) };
}

/** The expert in one slot, by its id. @param {Trace} trace @param {number} slot from 0 */
export const bySlot = (trace, slot) =>
  cells(trace, (row, at) => {
    const id = trace.routed_experts[at][row][slot];
    return id >= 0 ? id / Math.max(1, trace.num_experts[row] - 1) : NaN;
  });

/** The share of experts that a position has in common with the one before. @param {Trace} trace */
export const likeBefore = (trace) =>
  cells(trace, (row, at) => (at && trace.times_computed[at - 1] ? inCommon(expertsAt(trace, row, at), expertsAt(trace, row, at - 1)) / trace.top_k[row] : NaN));

/**
 * The share of experts that two traces have in common at the same position and layer.
 * Positions that only one has are left out.
 * @param {Trace} trace @param {Trace} other
 */
export function likeOther(trace, other) {
  const match = trace.layers.map((layer) => other.layers.indexOf(layer));
  const both = (at) => (other.times_computed[at] ?? 0) > 0;
  const data = cells(trace, (row, at) => (both(at) && match[row] >= 0 ? inCommon(expertsAt(trace, row, at), expertsAt(other, match[row], at)) / trace.top_k[row] : NaN));
  data.columnMarks = Uint8Array.from(trace.times_computed, (n, at) => (n && both(at) ? PRESENT : MISSING));
  return data;
}

/** One layer: its most taken experts x positions. @param {Trace} trace @param {number} row of the layer */
export function layerExperts(trace, row) {
  const slots = new Map();
  trace.times_computed.forEach((_, at) => expertsAt(trace, row, at).forEach((id) => slots.set(id, (slots.get(id) ?? 0) + 1)));
  const order = [...slots].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
  const experts = order.slice(0, MOST_EXPERTS).map(([id]) => id);
  const columns = trace.times_computed.length;
  const values = new Float32Array(experts.length * columns).fill(NaN);
  trace.times_computed.forEach((n, at) => {
    if (n) experts.forEach((id, r) => (values[r * columns + at] = trace.routed_experts[at][row].includes(id) ? 1 : 0));
  });
  return { experts, slots, taken: order.length, data: { rows: experts.map(String), values, palette: () => palette("sequential"), ...axis(trace) } };
}

// Ranks in blocks: of hundreds, a grid shows blocks of equal size, and one looks into a block.

/** So many rows or columns of ranks a grid has at most: each can be pointed at. */
export const MOST = 64;
const NODE = 8; // a block is 8 ranks, as many as most nodes have GPUs, or 8 times that, ...

/** @typedef {{ids: number[], from: number, to: number, part: number[]}} Side the positions from `from` up to `to` of `ids` are shown, in blocks that begin at each of `part` */

/** All of them one by one. @param {number[]} ids @returns {Side} */
export const single = (ids) => ({ ids, from: 0, to: ids.length, part: [...ids.keys()] });

/**
 * Which ranks of a side are shown, and in which blocks.
 * @param {number[]} ids rising
 * @param {string|null} chosen ids as 64-127, those to look at; null, or none that is there: all
 * @returns {Side}
 */
export function sideOf(ids, chosen) {
  const [, first, last] = /^(\d{1,7})-(\d{1,7})$/.exec(chosen ?? "") ?? [];
  const inside = first === undefined ? [] : [...ids.keys()].filter((i) => ids[i] >= Number(first) && ids[i] <= Number(last));
  const [from, to] = inside.length ? [inside[0], inside[inside.length - 1] + 1] : [0, ids.length];
  let size = 1;
  while ((to - from) / size > MOST) size *= NODE;
  return { ids, from, to, part: Array.from({ length: Math.ceil((to - from) / size) }, (_, i) => from + i * size) };
}

/** The positions of a block. @param {Side} side @param {number} block @returns {[number, number]} from, up to */
export const within = ({ to, part }, block) => [part[block], part[block + 1] ?? to];

/** Whether blocks have several ranks. @param {Side} side */
export const inBlocks = ({ from, to, part }) => part.length < to - from;

/** The ids of a block as a parameter, 8-15. @param {Side} side @param {number} block */
export function spanOf(side, block) {
  const [from, to] = within(side, block);
  return `${side.ids[from]}-${side.ids[to - 1]}`;
}

/** A block's name: 8, or 8–15. @param {Side} side @param {number} block */
export function nameOf(side, block) {
  const [from, to] = within(side, block);
  return to - from === 1 ? `${side.ids[from]}` : spanOf(side, block).replace("-", "–");
}

/**
 * The largest and the mean of the values of each block of cells.
 * @param {Side} rows
 * @param {Side} columns
 * @param {(row: number, column: number) => number} value by positions; NaN: none
 * @returns {{most: Float32Array, mean: Float32Array, at: [number, number][]}} by row and column of blocks; `at` are the positions of the largest
 */
export function summed(rows, columns, value) {
  const size = rows.part.length * columns.part.length;
  const found = { most: new Float32Array(size).fill(NaN), mean: new Float32Array(size).fill(NaN), at: /** @type {[number, number][]} */ (Array(size)) };
  for (let i = 0; i < size; i++) {
    const [top, bottom] = within(rows, Math.floor(i / columns.part.length));
    const [left, right] = within(columns, i % columns.part.length);
    let [total, known, most] = [0, 0, -Infinity];
    found.at[i] = [top, left];
    for (let r = top; r < bottom; r++) {
      for (let c = left; c < right; c++) {
        const each = value(r, c);
        if (Number.isNaN(each)) continue;
        total += each;
        known++;
        if (each <= most) continue;
        most = each;
        found.at[i] = [r, c];
      }
    }
    if (!known) continue;
    found.most[i] = most;
    found.mean[i] = total / known;
  }
  return found;
}

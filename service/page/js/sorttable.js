// Tables that are sorted by a click on a head, and show their first rows until all are asked for.

import { h, patch, setAttribute, setText } from "./dom.js";
import { count } from "./format.js";

const ROWS = 12;
const PAGE = 256; // rows at a time, however many there are

/**
 * A column. `key` of an item sorts it: a number (large ones first), or a text; without it the head doesn't sort.
 * `make` fills a new cell once, `show` brings it in line with an item.
 * @typedef {{name: string, hint?: string, number?: boolean, wide?: boolean, rising?: boolean, key?: (item: any) => number|string, make?: (cell: HTMLElement) => void, show: (cell: any, item: any) => void}} Column
 */

/**
 * @param {string} caption for screen readers
 * @param {Column[]} columns the first one names the rows
 * @param {{by: number, what: string, rows?: number}} options the column that sorts at first; what the rows are; rows to show at first
 */
export function sortTable(caption, columns, { by, what, rows = ROWS }) {
  let sorted = { by, rising: columns[by].rising ?? false };
  let all = false;
  let first = 0; // of the rows that are shown, when all are asked for
  let visible = /** @type {any[]} */ ([]);
  let shown = /** @type {any[]} */ ([]);
  const body = h("tbody");
  const heads = columns.map((column, i) => head(column, () => {
    sorted = { by: i, rising: sorted.by === i ? !sorted.rising : column.rising ?? false };
    draw();
  }));
  const table = h("table", { class: "cards" }, h("caption", { class: "unseen", text: caption }), h("thead", {}, h("tr", {}, ...heads)), body);
  const more = h("button", { class: "quiet more", type: "button", on: { click: () => { all = !all; first = 0; draw(); } } });
  const turn = (text, by) => h("button", { class: "quiet", type: "button", text, on: { click: () => { first += by; draw(); } } });
  const [before, after] = [turn("Previous", -PAGE), turn("Next", PAGE)];
  const where = h("span", { class: "muted", role: "status" });
  const pager = h("div", { class: "tools more", hidden: true }, where, before, after);
  const element = h("div", {}, h("div", { class: "scroll whole", tabindex: "0", role: "region", "aria-label": caption }, table), pager, more);
  const create = () => {
    const row = h("tr", {}, ...columns.map((column, i) => h(i ? "td" : "th", { scope: i ? null : "row", "data-label": i && column.name ? column.name : null, class: column.number ? "number" : column.wide ? "wide" : null })));
    columns.forEach((column, i) => column.make?.(/** @type {HTMLElement} */ (row.children[i])));
    return row;
  };

  function draw() {
    const { key = () => 0 } = columns[sorted.by];
    const order = shown.map((item, i) => ({ item, i, key: key(item) }));
    const sign = sorted.rising ? 1 : -1;
    order.sort((a, b) => sign * compare(a.key, b.key) || a.i - b.i);
    first = Math.max(0, Math.min(first, PAGE * Math.floor((order.length - 1) / PAGE)));
    const part = all ? order.slice(first, first + PAGE) : order.slice(0, rows);
    visible = part.map(({ item }) => item);
    patch(body, part, create, (row, { item }) => columns.forEach((column, i) => column.show(row.children[i], item)));
    heads.forEach((th, i) => setAttribute(th, "aria-sort", i === sorted.by ? (sorted.rising ? "ascending" : "descending") : null));
    more.hidden = shown.length <= rows;
    setText(more, all ? `Show the first ${rows} only` : `Show all ${count(shown.length)} ${what}`);
    setAttribute(more, "aria-expanded", String(all));
    pager.hidden = !all || order.length <= PAGE;
    setText(where, `${count(first + 1)} to ${count(first + part.length)} of ${count(order.length)} ${what}`);
    setDisabled(before, first === 0);
    setDisabled(after, first + PAGE >= order.length);
  }

  return {
    element,
    table,
    /** The items whose rows are shown now. */
    visible: () => visible,
    /** @param {any[]} items in the order that ties keep */
    update(items) {
      shown = items;
      draw();
    },
  };
}

/** @param {any} button @param {boolean} disabled */
function setDisabled(button, disabled) {
  if (button.disabled !== disabled) button.disabled = disabled;
}

/** Numbers by size, and what is no number last; texts by letters. */
function compare(a, b) {
  if (typeof a === "string") return a.localeCompare(b, "en", { numeric: true });
  return (a ?? -Infinity) === (b ?? -Infinity) ? 0 : (a ?? -Infinity) < (b ?? -Infinity) ? -1 : 1;
}

function head(column, onClick) {
  const th = h("th", { scope: "col", class: column.number ? "number" : null });
  const button = column.key && h("button", { class: "sort", type: "button", title: column.hint, text: column.name, on: { click: onClick } });
  th.append(button ?? h("span", { class: column.name ? null : "unseen", title: column.hint, text: column.name || "as a bar" }));
  return th;
}

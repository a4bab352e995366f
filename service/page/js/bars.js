// Tables with horizontal bars, made of HTML and CSS only.

import { h, patch, setAttribute, setText } from "./dom.js";

/** @typedef {{head: string, value: number, text: string, mark?: number, hot?: boolean, cells?: (string|Node)[], title?: string}} Bar */

/** An empty bar. */
export const makeBar = () => h("span", { class: "bar" }, h("i"), h("b"));

/**
 * Fill a bar.
 * @param {any} bar
 * @param {{value: number, most: number, mark?: number, hot?: boolean}} how `most` is the value of a full bar; `mark` is where a line is drawn, such as a fair share
 */
export function setBar(bar, { value, most, mark, hot }) {
  const [fill, line] = bar.children;
  fill.style.width = `${most > 0 ? Math.min(100, (100 * value) / most) : 0}%`;
  line.hidden = mark === undefined;
  if (mark !== undefined) line.style.left = `${most > 0 ? Math.min(100, (100 * mark) / most) : 0}%`;
  setAttribute(bar, "data-hot", hot ? "" : null);
}

/**
 * A table with a bar a row.
 * @param {string} caption for screen readers
 * @param {string[]} heads of the columns: name, bar, value, then further cells
 * @param {string[]} numbers heads of the further cells that are numbers
 */
export function barTable(caption, heads, numbers = []) {
  const number = (name, i) => (i === 2 || numbers.includes(name) ? "number" : null);
  const body = h("tbody");
  const row = h("tr", {}, ...heads.map((text, i) => h("th", { scope: "col", class: number(text, i) }, i === 1 ? h("span", { class: "unseen", text: "as a bar" }) : text)));
  const element = h("table", { class: "cards" }, h("caption", { class: "unseen", text: caption }), h("thead", {}, row), body);
  const create = () => {
    const cells = heads.slice(3).map((name) => h("td", { "data-label": name, class: number(name, 3) }));
    return h("tr", {}, h("th", { scope: "row" }), h("td", { class: "wide" }, makeBar()), h("td", { class: "number", "data-label": heads[2] }), ...cells);
  };
  return {
    element,
    /**
     * @param {Bar[]} bars `mark` is where a line is drawn, such as a fair share
     * @param {number} most the value of a full bar
     */
    update(bars, most) {
      patch(body, bars, create, (tr, item) => {
        const [head, wide, value, ...rest] = tr.children;
        setText(head, item.head);
        setText(value, item.text);
        setBar(wide.firstChild, { ...item, most });
        setAttribute(tr, "title", item.title);
        rest.forEach((cell, i) => {
          const content = item.cells?.[i] ?? "";
          if (content instanceof Node) cell.replaceChildren(content);
          else setText(cell, content);
        });
      });
    },
  };
}

/** A word in a colour that says what the word says. */
export const tag = (level, text, title) => h("span", { class: "tag", "data-level": level, text, title });

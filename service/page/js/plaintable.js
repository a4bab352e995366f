// Tables of texts, a row an item.

import { h, patch, setAttribute, setText } from "./dom.js";

/**
 * A table whose first column names the rows; the others are numbers.
 * @param {string} caption for screen readers
 * @param {string[]} heads of the columns
 */
export function plainTable(caption, heads) {
  const body = h("tbody");
  const row = h("tr", {}, ...heads.map((text, i) => h(text ? "th" : "td", { scope: text ? "col" : null, class: i ? "number" : null, text })));
  const element = h("table", { class: "cards" }, h("caption", { class: "unseen", text: caption }), h("thead", {}, row), body);
  const create = () => h("tr", {}, h("th", { scope: "row" }), ...heads.slice(1).map((name) => h("td", { class: "number", "data-label": name || null })));
  return {
    element,
    /**
     * @param {(string|Node)[][]} items the cells of each row
     * @param {string[]} [titles] of each row, shown when it is pointed at
     */
    rows(items, titles = []) {
      patch(body, items, create, (tr, cells, row) => {
        setAttribute(tr, "title", titles[row]);
        cells.forEach((content, i) => {
          if (content instanceof Node) {
            if (tr.children[i].firstChild !== content) tr.children[i].replaceChildren(content); // one that stays keeps its focus
          } else setText(tr.children[i], content);
        });
      });
    },
  };
}

// Large single numbers.

import { h, patch, setAttribute, setText } from "./dom.js";

/** @typedef {{name: string, value: string, hint?: string, level?: string|null, define?: string}} Tile `define` says what the name means, where it is pointed at */

/** A row of tiles. */
export function tiles() {
  const element = h("dl", { class: "tiles" });
  const create = () => h("div", { class: "tile" }, h("dt"), h("dd", { class: "value" }), h("dd", { class: "hint" }));
  return {
    element,
    /** @param {Tile[]} items */
    update(items) {
      patch(element, items, create, (tile, item) => {
        const [name, value, hint] = tile.children;
        setText(name, item.name);
        setText(value, item.value);
        setText(hint, item.hint ?? "");
        setAttribute(name, "title", item.define);
        setAttribute(tile, "data-level", item.level);
      });
    },
  };
}

/** How bad an imbalance ratio is: a fifth of the time lost is worth a look, half is worth acting. */
export const imbalanceLevel = (ratio) => (ratio === null || ratio === undefined ? null : ratio < 1.25 ? "good" : ratio < 2 ? "warn" : "bad");

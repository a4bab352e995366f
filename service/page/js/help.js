// What words mean and which keys there are: a dialog that ? opens.

import { h } from "./dom.js";
import { HOT_FROM, MEASURES } from "./measures.js";

/** Terms of every view, in a sentence each; docs/measures.md has the formulas. @type {Record<string, string>} */
export const TERMS = {
  Token: "A row of a batch that the model computed for a request; never padding.",
  Slot: "A pair of a token and an expert that it chose: a token with top-k 8 fills 8 slots in each MoE layer.",
  "Fair share": "What each one would have if all had the same: the layer's slots / its experts, or / its EP ranks.",
  "DP rank": "Whose tokens were routed.",
  "EP rank": "Whose GPU holds the experts that were chosen. In each layer all EP ranks wait for the busiest one.",
  "Imbalance ratio": `${MEASURES.imbalance_ratio.formula}. ${MEASURES.imbalance_ratio.meaning} 1 is best.`,
  "Ratio of sums": "The imbalance ratio over all layers: the sum of their max / the sum of their mean. An average EP rank waits 1 − 1 / ratio of the time in experts.",
  "Straggler cost": "Share of the time in experts that an average EP rank waits for the busiest one, from single steps.",
  MaxVio: `${MEASURES.max_vio.formula}. ${MEASURES.max_vio.meaning} 0 is best.`,
  "Dead, hot": `An expert is dead without a slot in the window, and hot with ${HOT_FROM} times a fair share or more.`,
};
const KEYS = [
  ["?", "this help"],
  ["1 … 7", "the views, in the order of the menu"],
  ["w", "the choice of the window"],
  ["t", "the theme: the system's, light, dark"],
  ["arrows, Page Up and Page Down, Home, End, Enter", "in a heatmap: move, ten layers on, first and last expert, open the layer"],
  ["Escape", "closes this help"],
];

/**
 * The dialog, and the keys of the page.
 * @param {HTMLElement} opener the button that opens it too
 * @param {{views: () => NodeListOf<HTMLElement>, window: () => HTMLElement|null, theme: HTMLElement}} page
 */
export function bindHelp(opener, page) {
  const list = (rows) => h("dl", { class: "terms" }, ...rows.map(([term, text]) => h("div", {}, h("dt", { text: term }), h("dd", { text }))));
  const close = h("button", { type: "button", text: "Close", on: { click: () => dialog.close() } });
  const dialog = /** @type {HTMLDialogElement} */ (h("dialog", { class: "help", "aria-label": "Help" }, h("h2", { text: "Keys" }), list(KEYS), h("h2", { text: "Words" }), list(Object.entries(TERMS)), close));
  document.body.append(dialog);
  const open = () => dialog.open || dialog.showModal();
  opener.addEventListener("click", open);
  document.addEventListener("keydown", (event) => {
    const typing = /** @type {HTMLElement} */ (event.target).closest("input, select, textarea");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
    if (event.key === "?") open();
    else if (event.key === "t") page.theme.click();
    else if (event.key === "w") page.window()?.focus();
    else if (/^[1-9]$/.test(event.key)) page.views()[Number(event.key) - 1]?.click();
    else return;
    event.preventDefault();
  });
}

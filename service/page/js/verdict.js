// The verdict on a deployment, in the service's own words: what is the matter, what it rests on, what to do.

import { tag } from "./bars.js";
import { h, patch, setAttribute, setText } from "./dom.js";

const LEVELS = { ok: ["good", "OK"], info: [null, "Info"], warning: ["warn", "Warning"], critical: ["bad", "Critical"] };

/** The answer of /v1/verdict on one deployment, as a panel. */
export function verdictPanel() {
  const mark = h("span");
  const words = h("p", { class: "lead", text: "Judging what the numbers say…" });
  const action = h("p", { class: "action" });
  const rests = h("p", { class: "muted" });
  const also = h("ul", { class: "also" });
  const numbers = h("tbody");
  const table = h("table", {}, h("caption", { class: "unseen", text: "Numbers of the verdict" }), numbers);
  const proof = h("details", {}, h("summary", { text: "Numbers, and where they come from" }), table);
  const element = h("section", { class: "panel verdict", "aria-label": "Verdict", "data-state": "loading" }, mark, words, action, also, rests, proof);
  const row = () => h("tr", {}, h("th", { scope: "row" }, h("a")), h("td", { class: "number" }), h("td", {}, h("a", { text: "API" })));
  let shown = "";
  return {
    element,
    /** @param {any} found an entry of the answer's verdicts */
    update(found) {
      const [level, name] = LEVELS[found.severity];
      setAttribute(element, "data-state", null);
      setAttribute(element, "data-level", level);
      setAttribute(element, "data-kind", found.kind);
      if (shown !== name) mark.replaceChildren(tag(level, name));
      shown = name;
      setText(words, found.words);
      setText(action, `What to do: ${found.action.words}`);
      setText(rests, [found.confidence.words, ...found.confidence.caveats.map(sentence)].join(" "));
      patch(also, found.also, () => h("li"), (li, item) => setText(li, `Besides (${item.severity}): ${item.words} What to do: ${item.action.words}`));
      also.hidden = !found.also.length;
      patch(numbers, [...found.numbers, ...found.action.numbers], row, (tr, number) => {
        const [head, value, api] = tr.children;
        setText(head.firstChild, number.name);
        setAttribute(head.firstChild, "href", number.view);
        setText(value, number.text);
        setAttribute(api.firstChild, "href", number.api);
        setAttribute(api.firstChild, "aria-label", `${number.name} in the API`);
      });
    },
  };
}

const sentence = (note) => `${note[0].toUpperCase()}${note.slice(1)}.`;

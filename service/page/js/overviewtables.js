// The tables of the Overview: DP ranks, layers, capture health, models.

import { makeBar, setBar, tag } from "./bars.js";
import { h, panel, patch, scroll, setAttribute, setText } from "./dom.js";
import { compact, count, measure, times } from "./format.js";
import { findings, rankState } from "./health.js";
import { MEASURES } from "./measures.js";
import { link } from "./route.js";
import { sortTable } from "./sorttable.js";

const OF_NOW = "of now, not of the past window";
const LEVELS = ["good", "warn", "bad"];
const WORST_LAYERS = 8;

/** Tokens per second of a DP rank, over the time that its own reports span, since ranks report one by one. */
export const rateOf = (rank) => (rank.seconds > 0 ? (rank.tokens ?? 0) / rank.seconds : 0);

/** @type {import("./sorttable.js").Column[]} */
const DP = [
  { name: "DP rank", rising: true, key: ({ id }) => id, show: (cell, { id }) => setText(cell, `${id}`) },
  { name: "", wide: true, make: (cell) => cell.append(makeBar()), show: (cell, { rate, most, fair }) => setBar(cell.firstChild, { value: rate, most, mark: fair }) },
  { name: "tokens/s", number: true, key: ({ rate }) => rate, show: (cell, { text }) => setText(cell, text) },
  {
    name: "state",
    hint: "What its capture does now; the worst first.",
    key: ({ state }) => LEVELS.indexOf(state.level),
    make: (cell) => cell.append(tag(null, "")),
    show: (cell, { state }) => {
      setAttribute(cell.firstChild, "data-level", state.level);
      setText(cell.firstChild, state.word);
      setAttribute(cell.firstChild, "title", state.text || null);
    },
  },
];

/** DP ranks, those that are not well first. */
export function dpPanel() {
  const table = sortTable("Tokens per second of each DP rank", DP, { by: 3, what: "DP ranks", rows: WORST_LAYERS });
  const { element, hint } = panel("DP ranks", "", table.element);
  return {
    element,
    update(view, deployment, past) {
      setText(hint, `whose tokens${past ? `; states are ${OF_NOW}` : ""}`);
      const byRank = new Map(view.dp_ranks.map((rank) => [rank.dp_rank, rank]));
      const rates = view.dp_ranks.map(rateOf);
      const fair = rates.reduce((a, b) => a + b, 0) / (rates.length || 1);
      const most = Math.max(...rates, 0);
      const items = deployment.dp_ranks.map((rank) => {
        const seen = byRank.get(rank.dp_rank);
        const rate = seen ? rateOf(seen) : 0;
        return { id: rank.dp_rank, rate, text: seen?.tokens === null ? "–" : compact(rate), state: rankState(rank), most, fair };
      });
      table.update(items.sort((a, b) => b.rate - a.rate));
    },
  };
}

const maxVio = `${MEASURES.max_vio.title} over experts`;
/** @type {import("./sorttable.js").Column[]} */
const LAYERS = [
  {
    name: "layer",
    rising: true,
    key: ({ layer }) => layer.layer,
    make: (cell) => cell.append(h("a")),
    show: (cell, { layer }) => {
      setText(cell.firstChild, `layer ${layer.layer}`);
      setAttribute(cell.firstChild, "href", link("layer", { layer: layer.layer }));
    },
  },
  { name: "over EP ranks", hint: MEASURES.imbalance_ratio.meaning, number: true, key: ({ layer }) => layer.over_ep_ranks?.imbalance_ratio ?? -1, show: (cell, { layer }) => setText(cell, measure(layer.over_ep_ranks?.imbalance_ratio)) },
  { name: "busiest EP rank", number: true, key: ({ hot }) => hot?.ep_rank ?? -1, show: (cell, { hot }) => setText(cell, hot?.ep_rank === null || !hot ? "–" : `${hot.ep_rank}`) },
  { name: "its busiest expert", hint: "Of the experts that only this rank holds, with its slots as a multiple of a fair share.", number: true, key: ({ hot }) => hot?.over_fair ?? -1, show: (cell, { hot }) => setText(cell, hot ? `${hot.expert} (${times(hot.over_fair)})` : "–") },
  { name: maxVio, hint: MEASURES.max_vio.meaning, number: true, key: ({ layer }) => layer.over_experts?.max_vio ?? -1, show: (cell, { layer }) => setText(cell, measure(layer.over_experts?.max_vio)) },
  { name: MEASURES.dead.title.toLowerCase(), hint: MEASURES.dead.meaning, number: true, key: ({ layer }) => layer.over_experts?.dead ?? -1, show: (cell, { layer }) => setText(cell, layer.over_experts ? count(layer.over_experts.dead) : "–") },
];

/** All layers, the worst first. */
export function worstLayers() {
  const byEpRanks = `by ${MEASURES.imbalance_ratio.title.toLowerCase()} over EP ranks`;
  const tables = [1, 4].map((by) => sortTable("Worst layers", LAYERS, { by, what: "layers", rows: WORST_LAYERS }));
  const { element, hint } = panel("Worst layers", byEpRanks, ...tables.map((table) => table.element));
  return {
    element,
    update(view) {
      const byEp = view.layers.some((layer) => layer.over_ep_ranks);
      setText(hint, byEp ? byEpRanks : `by ${maxVio}`);
      const items = view.layers.map((layer, i) => ({ layer, hot: view.hot?.[i] }));
      const known = items.filter(({ layer }) => (byEp ? layer.over_ep_ranks : layer.over_experts));
      tables.forEach((table, i) => {
        table.element.hidden = (i === 0) !== byEp;
        if (!table.element.hidden) table.update(known);
      });
    },
  };
}

/** What is wrong, in words. */
export function healthList() {
  const list = h("ul", { class: "health" });
  const { element, hint } = panel("Capture health", "", list);
  const create = () => h("li", {}, h("span", { class: "tag" }), h("span"));
  return {
    element,
    update(deployment, past) {
      setText(hint, past ? OF_NOW : "");
      patch(list, findings(deployment), create, (li, item) => {
        setAttribute(li.firstChild, "data-level", item.level);
        setText(li.firstChild, item.word);
        setText(li.lastChild, item.text);
      });
    },
  };
}

/** All that report. */
export function modelTable() {
  const heads = ["model", "server", "live DP ranks", "EP size", "tokens since the start", "vLLM"];
  const number = (i) => (i >= 2 && i <= 4 ? "number" : null);
  const body = h("tbody");
  const table = h("table", { class: "cards" }, h("thead", {}, h("tr", {}, ...heads.map((text, i) => h("th", { scope: "col", class: number(i), text })))), body);
  const { element } = panel("Models", "all that report to this service", scroll("Models", table));
  const create = () => h("tr", {}, h("th", { scope: "row" }, h("a")), ...heads.slice(1).map((_, i) => h("td", { class: number(i + 1), "data-label": heads[i + 1] })));
  return {
    element,
    update(ranks, current) {
      patch(body, ranks.deployments, create, (tr, d) => {
        const [head, ...cells] = tr.children;
        const live = d.dp_ranks.filter((rank) => rankState(rank).level === "good").length;
        const known = d.dp_ranks.filter((rank) => rank.tokens !== null);
        const tokens = known.length ? count(known.reduce((sum, rank) => sum + rank.tokens, 0)) : "–";
        setText(head.firstChild, d.model);
        setAttribute(head.firstChild, "href", link("overview", { server: d.server, model: d.model, layer: null, dp_rank: null, dp: null, ep: null }));
        setAttribute(head.firstChild, "aria-current", d === current ? "true" : null);
        [d.server, `${live} of ${d.dp_size}`, `${d.ep_size}`, tokens, d.dp_ranks[0]?.producers[0]?.vllm_version || "–"].forEach((text, i) => setText(cells[i], text));
      });
    },
  };
}

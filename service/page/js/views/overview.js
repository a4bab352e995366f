// Who reports, how much they compute, how even it is, and what is wrong.

import { get } from "../api.js";
import { barTable, tag } from "../bars.js";
import { lineChart } from "../chart.js";
import { h, panel, patch, scroll, setAttribute, setText } from "../dom.js";
import { compact, count, duration, measure, percent, plural, times } from "../format.js";
import { findings, rankState } from "../health.js";
import { MEASURES } from "../measures.js";
import { phaseNote } from "../phase.js";
import { bounds, link } from "../route.js";
import { imbalanceLevel, tiles } from "../tiles.js";
import { verdictPanel } from "../verdict.js";

const TREND_EVERY_S = 5;
const WORST_LAYERS = 8;
const MANY_LINES = 6;
const OF_NOW = "of now, not of the past window";

/** @returns {import("../main.js").View} */
export function create() {
  const top = tiles();
  const dp = barTable("Tokens per second of each DP rank", ["DP rank", "", "tokens/s", "state"]);
  const ep = barTable("Slots of each EP rank", ["EP rank", "", "slots", "of a fair share"]);
  const rates = lineChart("Tokens per second over the last five minutes", compact, 0);
  const imbalance = lineChart("Imbalance ratio over EP ranks over the last five minutes", (x) => x.toFixed(2), 1);
  const parts = {
    dp: panel("DP ranks", "whose tokens", scroll("DP ranks", dp.element)),
    ep: panel("EP ranks", "who holds the chosen experts", scroll("EP ranks", ep.element)),
    rates: panel("Tokens per second", "last 5 minutes", rates.element),
    imbalance: panel("Imbalance over EP ranks", "max / mean, 1 is best; last 5 minutes", imbalance.element),
  };
  const verdict = verdictPanel();
  const worst = worstLayers();
  const health = healthList();
  const unphased = phaseNote();
  const models = modelTable();
  const epReason = h("p", { class: "nodata" });
  parts.ep.element.append(epReason);
  const element = h(
    "div",
    { class: "stack" },
    h("h1", { class: "unseen", text: "Overview" }),
    verdict.element,
    unphased.element,
    top.element,
    h("div", { class: "columns" }, parts.imbalance.element, parts.rates.element),
    h("div", { class: "columns" }, parts.ep.element, parts.dp.element),
    h("div", { class: "columns" }, worst.element, health.element),
    models.element,
  );
  let trend = /** @type {any} */ (null);
  let trendAt = -Infinity;
  let trendOf = "";

  return {
    element,
    async refresh({ route, ranks, deployment, query, now, signal }) {
      const { server, model, phase } = query;
      const { start, end } = query;
      const [view, judged] = await Promise.all([
        get("v1/view", query, signal),
        get("v1/verdict", { server, model, start: start ?? 0, end }, signal),
      ]);
      verdict.update(judged.verdicts[0]);
      if (now - trendAt >= TREND_EVERY_S || now < trendAt || trendOf !== `${server} ${model} ${phase}`) {
        trend = await get("v1/trend", { server, model, phase, step: 5, points: 60 }, signal);
        trendAt = now;
        trendOf = `${server} ${model} ${phase}`;
        drawTrend(trend, rates, imbalance);
      }
      unphased.update(view);
      top.update(summary(view, deployment));
      const { past } = bounds(route.params);
      setText(parts.rates.hint, `last 5 minutes${past ? `, ${OF_NOW}` : ""}`);
      setText(parts.imbalance.hint, `max / mean, 1 is best; last 5 minutes${past ? `, ${OF_NOW}` : ""}`);
      setText(parts.dp.hint, `whose tokens${past ? `; states are ${OF_NOW}` : ""}`);
      drawDp(dp, view, deployment);
      drawEp(ep, view, epReason);
      worst.update(view);
      health.update(deployment, past);
      models.update(ranks, deployment);
    },
    destroy() {
      rates.destroy();
      imbalance.destroy();
    },
  };
}

/** Tokens per second of a DP rank, over the time that its own reports span, since ranks report one by one. */
const rateOf = (rank) => (rank.seconds > 0 ? (rank.tokens ?? 0) / rank.seconds : 0);

function summary(view, deployment) {
  const { ratio_of_sums: ratio, worst, worst_layer: layer } = view.over_ep_ranks;
  const reason = view.layers.find((item) => item.ep_reason)?.ep_reason ?? "no layer was seen";
  const dead = view.layers.reduce((sum, item) => sum + (item.over_experts?.dead ?? 0), 0);
  const experts = view.layers.reduce((sum, item) => sum + (item.over_experts ? item.num_experts : 0), 0);
  const found = findings(deployment);
  const bad = found.filter((item) => item.level !== "good").length;
  return [
    { name: "Tokens per second", value: view.tokens === null ? "–" : compact(view.dp_ranks.reduce((sum, rank) => sum + rateOf(rank), 0)), hint: view.tokens === null ? "not known of every DP rank" : `${count(view.tokens)} tokens${view.phase ? ` of ${view.phase}` : ""} in ${spanOf(view)}` },
    phaseTile(view),
    { name: "Imbalance over EP ranks", value: ratio === null ? "–" : times(ratio), hint: ratio === null ? reason : `max / mean over ${view.absent.length ? "the layers found" : "all layers"}: a mean rank waits ${percent(1 - 1 / ratio, 0)} of the time`, level: imbalanceLevel(ratio) },
    { name: "Worst layer", value: layer === null ? "–" : `${layer}`, hint: worst === null ? "no sample" : `imbalance ratio ${measure(worst)}`, level: imbalanceLevel(worst) },
    { name: "Dead experts", value: experts ? count(dead) : "–", hint: experts ? `of ${count(experts)} in ${plural(view.over_experts.layers, "layer")}` : "no sample" },
    { name: "Capture", value: bad ? plural(bad, "problem") : "healthy", hint: bad ? found[0].text : `${plural(deployment.dp_ranks.length, "DP rank")}, ${plural(view.layers.length, "MoE layer")}`, level: bad ? found[0].level : "good" },
  ];
}

/** The share of prefill tokens; a dash unless every DP rank tells phases apart. */
function phaseTile(view) {
  const name = "Prefill";
  const phases = view.dp_ranks.map((rank) => rank.phases);
  if (!phases.length || phases.some((item) => !item)) return { name, value: "–", hint: "not every DP rank tells phases apart" };
  const [prefill, decode] = [phases.reduce((sum, item) => sum + item.prefill_tokens, 0), phases.reduce((sum, item) => sum + item.decode_tokens, 0)];
  if (!(prefill + decode)) return { name, value: "–", hint: "no tokens in this window" };
  return { name, value: percent(prefill / (prefill + decode), 1), hint: `of all tokens; ${compact(prefill)} prefill, ${compact(decode)} decode` };
}

function spanOf(view) {
  const { used_start: start, used_end: end } = view.window;
  return duration(Math.max(0, end.latest - start.earliest));
}

function drawDp(table, view, deployment) {
  const byRank = new Map(view.dp_ranks.map((rank) => [rank.dp_rank, rank]));
  const most = Math.max(...view.dp_ranks.map(rateOf), 0);
  table.update(
    deployment.dp_ranks.map((rank) => {
      const seen = byRank.get(rank.dp_rank);
      const rate = seen ? rateOf(seen) : 0;
      const state = rankState(rank);
      return { head: `${rank.dp_rank}`, value: rate, text: seen?.tokens === null ? "–" : compact(rate), cells: [tag(state.level, state.word, state.text || null)] };
    }),
    most,
  );
}

function drawEp(table, view, reason) {
  const layers = view.layers.filter((layer) => layer.over_ep_ranks && layer.ep_slots);
  const width = Math.max(0, ...layers.map((layer) => layer.ep_slots.length));
  const loads = Array.from({ length: width }, (_, r) => layers.reduce((sum, layer) => sum + (layer.ep_slots[r] ?? 0), 0));
  const total = loads.reduce((a, b) => a + b, 0);
  const fair = total / width;
  table.element.hidden = !total;
  reason.hidden = !!total;
  setText(reason, total ? "" : view.layers.find((layer) => layer.ep_reason)?.ep_reason ?? "No layer was seen in this window.");
  const most = Math.max(0, ...loads);
  table.update(
    loads.map((load, r) => ({ head: `${r}`, value: load, text: compact(load), mark: fair, hot: load > 1.25 * fair, cells: [times(load / fair)] })),
    Math.max(most, 1.2 * fair),
  );
}

function drawTrend(trend, rates, imbalance) {
  const lines = trend.dp_ranks.map((rank, i) => ({ name: `DP rank ${rank}`, values: trend.tokens_per_second[i] }));
  const total = trend.at.map((_, i) => lines.reduce((sum, line) => (line.values[i] === null ? sum : (sum ?? 0) + line.values[i]), /** @type {number|null} */ (null)));
  rates.update(trend.at, lines.length > MANY_LINES ? [{ name: "all DP ranks", values: total }] : lines);
  imbalance.update(trend.at, [
    { name: "all layers (ratio of sums)", values: trend.ratio_of_sums },
    { name: "worst layer", values: trend.worst },
  ]);
}

function worstLayers() {
  const byEpRanks = `by ${MEASURES.imbalance_ratio.title.toLowerCase()} over EP ranks`;
  const maxVio = `${MEASURES.max_vio.title} over experts`;
  const heads = ["layer", "over EP ranks", maxVio, MEASURES.dead.title.toLowerCase()];
  const body = h("tbody");
  const table = h("table", {}, h("thead", {}, h("tr", {}, ...heads.map((text, i) => h("th", { scope: "col", class: i ? "number" : null, text })))), body);
  const { element, hint } = panel("Worst layers", byEpRanks, scroll("Worst layers", table));
  const create = () => h("tr", {}, h("th", { scope: "row" }, h("a")), ...[1, 2, 3].map(() => h("td", { class: "number" })));
  return {
    element,
    update(view) {
      const byEp = view.layers.some((layer) => layer.over_ep_ranks);
      const value = (layer) => (byEp ? layer.over_ep_ranks?.imbalance_ratio : layer.over_experts?.max_vio) ?? -1;
      setText(hint, byEp ? byEpRanks : `by ${maxVio}`);
      const layers = view.layers.filter((layer) => value(layer) >= 0).sort((a, b) => value(b) - value(a)).slice(0, WORST_LAYERS);
      patch(body, layers, create, (tr, layer) => {
        const [head, ...cells] = tr.children;
        setText(head.firstChild, `layer ${layer.layer}`);
        setAttribute(head.firstChild, "href", link("layer", { layer: layer.layer }));
        [measure(layer.over_ep_ranks?.imbalance_ratio), measure(layer.over_experts?.max_vio), layer.over_experts ? count(layer.over_experts.dead) : "–"].forEach((text, i) => setText(cells[i], text));
      });
    },
  };
}

function healthList() {
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

function modelTable() {
  const heads = ["model", "server", "live DP ranks", "EP size", "tokens since the start", "vLLM"];
  const number = (i) => (i >= 2 && i <= 4 ? "number" : null);
  const body = h("tbody");
  const table = h("table", {}, h("thead", {}, h("tr", {}, ...heads.map((text, i) => h("th", { scope: "col", class: number(i), text })))), body);
  const { element } = panel("Models", "all that report to this service", scroll("Models", table));
  const create = () => h("tr", {}, h("th", { scope: "row" }, h("a")), ...heads.slice(1).map((_, i) => h("td", { class: number(i + 1) })));
  return {
    element,
    update(ranks, current) {
      patch(body, ranks.deployments, create, (tr, d) => {
        const [head, ...cells] = tr.children;
        const live = d.dp_ranks.filter((rank) => rankState(rank).level === "good").length;
        const known = d.dp_ranks.filter((rank) => rank.tokens !== null);
        const tokens = known.length ? count(known.reduce((sum, rank) => sum + rank.tokens, 0)) : "–";
        setText(head.firstChild, d.model);
        setAttribute(head.firstChild, "href", link("overview", { server: d.server, model: d.model, layer: null, dp_rank: null }));
        setAttribute(head.firstChild, "aria-current", d === current ? "true" : null);
        [d.server, `${live} of ${d.dp_size}`, `${d.ep_size}`, tokens, d.dp_ranks[0]?.producers[0]?.vllm_version || "–"].forEach((text, i) => setText(cells[i], text));
      });
    },
  };
}

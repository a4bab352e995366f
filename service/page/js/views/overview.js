// Who reports, how much they compute, how even it is, and what is wrong.

import { get } from "../api.js";
import { overviewAsks } from "../asked.js";
import { causesPanel } from "../causes.js";
import { lineChart } from "../chart.js";
import { h, panel, setText } from "../dom.js";
import { compact, count, duration, measure, percent, plural, times } from "../format.js";
import { findings } from "../health.js";
import { dpPanel, healthList, modelTable, rateOf, worstLayers } from "../overviewtables.js";
import { TERMS } from "../help.js";
import { phaseNote } from "../phase.js";
import { bounds, go } from "../route.js";
import { imbalanceLevel, tiles } from "../tiles.js";
import { intervals, spanned } from "../trend.js";
import { verdictPanel } from "../verdict.js";

const SLOW_S = 5; // trend and stragglers are asked for so often
const MANY_LINES = 6;
const MANY_RANKS = 256; // of more EP ranks, loads over time are asked for of those whose rows are shown

/** @returns {import("../main.js").View} */
export function create() {
  const top = tiles();
  const zoom = (from, to) => go("overview", { window: null, from, to });
  const rates = lineChart("Tokens per second over time", compact, 0, zoom);
  const imbalance = lineChart("Imbalance ratio over EP ranks over time", (x) => x.toFixed(2), 1, zoom);
  const parts = {
    rates: panel("Tokens per second", "", rates.element),
    imbalance: panel("Imbalance over EP ranks", "", imbalance.element),
  };
  const verdict = verdictPanel();
  const causes = causesPanel();
  const dp = dpPanel();
  const worst = worstLayers();
  const health = healthList();
  const unphased = phaseNote();
  const models = modelTable();
  const element = h(
    "div",
    { class: "stack" },
    h("h1", { class: "unseen", text: "Overview" }),
    verdict.element,
    unphased.element,
    top.element,
    causes.element,
    h("div", { class: "columns later" }, parts.imbalance.element, parts.rates.element),
    h("div", { class: "columns later" }, worst.element, dp.element),
    h("div", { class: "columns later" }, health.element, models.element),
  );
  let slow = { key: "", at: -Infinity, trend: /** @type {any} */ (null), waited: /** @type {any} */ (null) };

  return {
    element,
    async refresh({ route, ranks, deployment, query, now, signal, show }) {
      const { server, model, phase, start, end } = query;
      const [[path, asked], [judge, judged]] = overviewAsks(query);
      const first = !slow.trend;
      const judging = first ? null : get(judge, judged, signal);
      judging?.catch(() => {}); // where the view's answer fails too, that is told
      const view = await get(path, asked, signal);
      const draw = () => {
        unphased.update(view);
        top.update(summary(view, deployment));
        const { past } = bounds(route.params);
        dp.update(view, deployment, past);
        worst.update(view);
        health.update(deployment, past);
        models.update(ranks, deployment);
      };
      if (first) {
        draw(); // what is known, until the rest is
        show();
      }
      const { verdicts: [found] } = await (judging ?? get(judge, judged, signal));
      if (first) verdict.update(found);
      const key = JSON.stringify([server, model, phase, start, end]);
      const many = view.ep_size > MANY_RANKS;
      const due = slow.key !== key || now - slow.at >= SLOW_S || now < slow.at || (many && !knows(slow.trend, causes.visible()));
      if (due) {
        const span = { server, model, phase, ...intervals(route.params, view, now) };
        const waiting = get("v1/stragglers", { server, model, start, end }, signal);
        if (many) causes.update(view, await waiting, slow.trend); // says whose rows are shown
        const loads = many ? { ep_rank: causes.visible() } : { parts: ["ep_ranks"] };
        const [trend, waited] = await Promise.all([get("v1/trend", { ...span, ...loads }, signal), waiting]);
        slow = { key, at: now, trend, waited };
        drawTrend(trend, rates, imbalance);
        const said = spanned(trend);
        setText(parts.rates.hint, `${said}; drag to zoom`);
        setText(parts.imbalance.hint, `max / mean, 1 is best; ${said}; drag to zoom`);
      }
      verdict.update(found);
      draw();
      causes.update(view, slow.waited, slow.trend);
    },
    destroy() {
      rates.destroy();
      imbalance.destroy();
    },
  };
}

/** Whether a trend has the loads of EP ranks. */
const knows = (trend, ranks) => !ranks.length || (trend?.ep_rank_ids && ranks.every((rank) => trend.ep_rank_ids.includes(rank)));

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
    { name: "Imbalance over EP ranks", value: ratio === null ? "–" : times(ratio), define: TERMS["Ratio of sums"], hint: ratio === null ? reason : `max / mean over ${view.absent.length ? "the layers found" : "all layers"}: a mean rank waits ${percent(1 - 1 / ratio, 0)} of the time`, level: imbalanceLevel(ratio) },
    { name: "Worst layer", define: TERMS["Imbalance ratio"], value: layer === null ? "–" : `${layer}`, hint: worst === null ? "no sample" : `imbalance ratio ${measure(worst)}`, level: imbalanceLevel(worst) },
    { name: "Dead experts", define: TERMS["Dead, hot"], value: experts ? count(dead) : "–", hint: experts ? `of ${count(experts)} in ${plural(view.over_experts.layers, "layer")}` : "no sample" },
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

function drawTrend(trend, rates, imbalance) {
  const lines = trend.dp_ranks.map((rank, i) => ({ name: `DP rank ${rank}`, values: trend.tokens_per_second[i] }));
  const total = trend.at.map((_, i) => lines.reduce((sum, line) => (line.values[i] === null ? sum : (sum ?? 0) + line.values[i]), /** @type {number|null} */ (null)));
  rates.update(trend.at, lines.length > MANY_LINES ? [{ name: "all DP ranks", values: total }] : lines);
  imbalance.update(trend.at, [
    { name: "all layers (ratio of sums)", values: trend.ratio_of_sums },
    { name: "worst layer", values: trend.worst },
  ]);
}

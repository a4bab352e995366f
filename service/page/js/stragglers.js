// The cost of waiting for the busiest EP rank, from single steps, beside what the sums of the window say.

import { barTable } from "./bars.js";
import { h, panel, scroll, setAttribute, setText } from "./dom.js";
import { count, percent, plural } from "./format.js";
import { link } from "./route.js";
import { tiles } from "./tiles.js";

const WORST_LAYERS = 10;
const LOST = 0.05; // of the steps, from which on it is worth a warning
const ACT_ON = 0.2;
const EXPLAINED =
  "In every layer of every step, all EP ranks wait for the busiest one. The window adds its steps up before it compares ranks, so it does not show " +
  "a hot rank that changes from step to step. Another placement of the experts (EPLB) can mend what the window shows too. It can't mend what only " +
  "the steps show: there, larger or better mixed batches help. Slots stand for time.";

/** GET /v1/stragglers: a panel with the sums, and `details` by layer and by rank. */
export function stragglers() {
  const top = tiles();
  const words = h("p", { class: "lead" });
  const explained = h("p", { class: "muted", text: EXPLAINED });
  const reason = h("p", { class: "nodata" });
  const layers = barTable("Layers by straggler cost", ["layer", "", "straggler cost", "by the window", "hottest EP rank"]);
  const ranks = barTable("How often each EP rank was the hottest", ["EP rank", "", "of all steps and layers", "times"]);
  const whole = panel("Stragglers", "share of MoE time lost to waiting for the busiest EP rank; prefill and decode together", words, top.element, reason, explained);
  const details = h(
    "div",
    { class: "columns" },
    panel("Worst layers", "by straggler cost", scroll("Layers by straggler cost", layers.element)).element,
    panel("Hottest EP rank", "who kept the others waiting, how often; the line is an even share", scroll("How often each EP rank was the hottest", ranks.element)).element,
  );
  return {
    element: whole.element,
    details,
    /** @param {any} answer */
    update(answer) {
      const known = answer.straggler_cost !== null;
      for (const part of [words, top.element, explained]) part.hidden = !known;
      details.hidden = !known;
      const why = notes(answer);
      reason.hidden = !why;
      setText(reason, why);
      if (!known) return;
      setText(words, verdict(answer));
      top.update(summary(answer));
      drawLayers(layers, answer.layers);
      drawRanks(ranks, answer.hottest);
    },
  };
}

const sum = (values) => values.reduce((a, b) => a + b, 0);

/** Why there is no cost; or why no steps can be joined now, although some were joined before. */
function notes({ reason, stages }) {
  if (reason) return `No straggler cost: ${reason}.`;
  const stuck = stages.filter((stage) => stage.reason);
  return stuck.map((stage) => `Pipeline stage ${stage.pp_rank}: no step can be joined now: ${stage.reason}.`).join(" ");
}

function verdict({ straggler_cost: cost, windowed_straggler_share: windowed }) {
  const waits = `An average EP rank waits ${percent(cost, 1)} of its MoE time for the busiest one.`;
  if (windowed === null) return `${waits} What placement could mend of it is not known: the window has no sample of all loads.`;
  return `${waits} ${percent(Math.min(cost, windowed), 1)} shows in the window's sums too; ${percent(Math.max(0, cost - windowed), 1)} only in the single steps.`;
}

function summary(answer) {
  const [joined, incomplete, pending] = ["joined", "incomplete", "pending"].map((name) => sum(answer.stages.map((stage) => stage[name])));
  const { hottest_rank: rank, hottest, straggler_cost: cost, windowed_straggler_share: windowed } = answer;
  return [
    { name: "Straggler cost", value: percent(cost, 1), hint: "from single steps: 1 − sum of means / sum of maxes", level: cost < ACT_ON ? "good" : cost < 0.5 ? "warn" : "bad" },
    { name: "By the window alone", value: windowed === null ? "–" : percent(windowed, 1), hint: windowed === null ? "no sample of all loads" : "as if its steps were one" },
    { name: "Hottest EP rank", value: rank === null ? "–" : `${rank}`, hint: rank === null ? "" : `in ${percent(hottest[rank] / sum(hottest), 1)} of all steps and layers; even would be ${percent(1 / hottest.length, 1)}` },
    { name: "Steps joined", value: count(joined), hint: `${plural(incomplete, "step")} incomplete, ${count(pending)} pending`, level: incomplete > LOST * (joined + incomplete) ? "warn" : null },
  ];
}

function drawLayers(table, all) {
  const worst = all.filter((layer) => layer.straggler_cost !== null).sort((a, b) => b.straggler_cost - a.straggler_cost || a.layer - b.layer).slice(0, WORST_LAYERS);
  table.update(
    worst.map((layer) => {
      const { hottest, hottest_rank: rank, windowed_straggler_share: windowed } = layer;
      return {
        head: `${layer.layer}`,
        value: layer.straggler_cost,
        text: percent(layer.straggler_cost, 1),
        mark: windowed ?? undefined,
        cells: [windowed === null ? "–" : percent(windowed, 1), rank === null ? "–" : `${rank} (${percent(hottest[rank] / sum(hottest), 1)} of ${plural(layer.steps, "step")})`],
      };
    }),
    worst[0]?.straggler_cost ?? 0,
  );
  for (const [i, row] of [...table.element.querySelectorAll("tbody tr")].entries()) linkHead(row, worst[i].layer);
}

/** The row's head leads to its layer. */
function linkHead(row, layer) {
  const head = row.firstElementChild;
  const a = head.firstElementChild ?? h("a");
  setText(a, `${layer}`);
  setAttribute(a, "href", link("layer", { layer }));
  if (!a.parentElement) head.replaceChildren(a);
}

function drawRanks(table, hottest) {
  const total = sum(hottest);
  const even = 1 / hottest.length;
  const shares = hottest.map((times) => times / total);
  table.update(
    shares.map((value, rank) => ({ head: `${rank}`, value, text: percent(value, 1), mark: even, hot: value > 2 * even, cells: [count(hottest[rank])] })),
    Math.max(1.2 * even, ...shares),
  );
}

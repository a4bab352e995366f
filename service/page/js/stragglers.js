// The cost of waiting for the busiest EP rank, from single steps, beside what the sums of the window say.

import { makeBar, setBar } from "./bars.js";
import { h, panel, setAttribute, setText } from "./dom.js";
import { count, percent, plural } from "./format.js";
import { link } from "./route.js";
import { sortTable } from "./sorttable.js";
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
  const layers = sortTable("Layers by straggler cost", LAYERS, { by: 2, what: "layers", rows: WORST_LAYERS });
  const ranks = sortTable("How often each EP rank was the hottest", RANKS, { by: 2, what: "EP ranks", rows: WORST_LAYERS });
  const whole = panel("Stragglers", "share of MoE time lost to waiting for the busiest EP rank; prefill and decode together", words, top.element, reason, explained);
  const details = h(
    "div",
    { class: "columns" },
    panel("Worst layers", "by straggler cost", layers.element).element,
    panel("Hottest EP rank", "who kept the others waiting, how often; the line is an even share", ranks.element).element,
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
      drawRanks(ranks, answer);
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

/** @type {import("./sorttable.js").Column[]} */
const LAYERS = [
  {
    name: "layer",
    rising: true,
    key: ({ layer }) => layer,
    make: (cell) => cell.append(h("a")),
    show: (cell, { layer }) => {
      setText(cell.firstChild, `${layer}`);
      setAttribute(cell.firstChild, "href", link("layer", { layer }));
    },
  },
  { name: "", wide: true, make: (cell) => cell.append(makeBar()), show: (cell, { cost, most, windowed }) => setBar(cell.firstChild, { value: cost, most, mark: windowed ?? undefined }) },
  { name: "straggler cost", number: true, key: ({ cost }) => cost, show: (cell, { cost }) => setText(cell, percent(cost, 1)) },
  { name: "by the window", hint: "The same from the window's sums, which is what placement can mend.", key: ({ windowed }) => windowed ?? -1, show: (cell, { windowed }) => setText(cell, windowed === null ? "–" : percent(windowed, 1)) },
  { name: "hottest EP rank", key: ({ often }) => often, show: (cell, { rank, often, steps }) => setText(cell, rank === null ? "–" : `${rank} (${percent(often, 1)} of ${plural(steps, "step")})`) },
];

function drawLayers(table, all) {
  const known = all.filter((layer) => layer.straggler_cost !== null);
  const most = Math.max(0, ...known.map((layer) => layer.straggler_cost));
  table.update(
    known.map(({ layer, steps, straggler_cost: cost, windowed_straggler_share: windowed, hottest, hottest_rank: rank }) => ({
      layer, steps, cost, windowed, rank, most, often: rank === null ? 0 : hottest[rank] / sum(hottest),
    })),
  );
}

/** @type {import("./sorttable.js").Column[]} */
const RANKS = [
  { name: "EP rank", rising: true, key: ({ rank }) => rank, show: (cell, { rank }) => setText(cell, `${rank}`) },
  { name: "", wide: true, make: (cell) => cell.append(makeBar()), show: (cell, { share, most, even }) => setBar(cell.firstChild, { value: share, most, mark: even, hot: share > 2 * even }) },
  { name: "of all steps and layers", number: true, key: ({ share }) => share, show: (cell, { share }) => setText(cell, percent(share, 1)) },
  { name: "times", number: true, key: ({ times }) => times, show: (cell, { times }) => setText(cell, count(times)) },
  { name: "of the waiting", hint: "Share of all waiting that it caused: max − mean slots where it was the busiest.", number: true, key: ({ caused }) => caused, show: (cell, { caused }) => setText(cell, percent(caused, 1)) },
];

function drawRanks(table, { hottest, caused, max_slots: most, mean_slots: mean }) {
  const total = sum(hottest);
  const even = 1 / hottest.length;
  const widest = Math.max(1.2 * even, ...hottest.map((times) => times / total));
  table.update(hottest.map((times, rank) => ({ rank, times, share: times / total, caused: most > mean ? caused[rank] / (most - mean) : 0, even, most: widest })));
}

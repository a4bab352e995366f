// Who causes the waiting: each EP rank's share of it, from single steps, or else from the window's sums.

import { makeBar, setBar } from "./bars.js";
import { h, panel, setAttribute, setText } from "./dom.js";
import { percent, times } from "./format.js";
import { link } from "./route.js";
import { sortTable } from "./sorttable.js";
import { drawSpark, spark } from "./spark.js";

const OFTEN = 2; // times an even share, from which on a rank stands out
const BY_STEPS = "from single steps, prefill and decode together";
const BY_SUMS = "by the window's sums, since the loads of single steps are not known";
const SMALL = 0.005;

const sum = (values) => values.reduce((a, b) => a + b, 0);

/** @typedef {{rank: number, caused: number, busiest: number, load: number|null, layer: number|null, expert: {expert: number, over_fair: number}|null, even: number, most: number, trend: (number|null)[]}} Cause */

/**
 * Each EP rank's part in the waiting of a window.
 * @param {any} view of /v1/view with `ep_ranks` and `hot`
 * @param {any} waited of /v1/stragglers
 * @returns {{causes: Cause[], bySteps: boolean, untold: number}} `untold`: share of the waiting of which it isn't known who caused it
 */
export function causesOf(view, waited) {
  const bySteps = waited.straggler_cost !== null && waited.hottest.length > 0;
  const told = view.ep_ranks;
  const { caused, worst_layer: worst, busiest: often } = bySteps ? ofSteps(waited) : told;
  const size = Math.max(caused.length, told.slots.length);
  const total = bySteps ? waited.max_slots - waited.mean_slots : sum(caused);
  const fair = sum(told.slots) / size;
  const oftenest = sum(often) || 1;
  const hot = new Map(view.layers.map((layer, i) => [layer.layer, view.hot?.[i]]));
  const causes = Array.from({ length: size }, (_, rank) => {
    const layer = worst[rank] ?? null;
    const spot = hot.get(layer);
    return {
      rank,
      caused: total > 0 ? (caused[rank] ?? 0) / total : 0,
      busiest: (often[rank] ?? 0) / oftenest,
      load: fair ? (told.slots[rank] ?? 0) / fair : null,
      layer,
      expert: spot?.ep_rank === rank ? spot : null,
      even: 1 / size,
      most: 0,
      trend: [],
    };
  });
  const untold = Math.max(0, 1 - sum(causes.map(({ caused }) => caused)));
  return { causes, bySteps, untold: total > 0 ? untold : 0 };
}

/** The same of single steps as `ep_ranks` of a view has of the window's sums. */
function ofSteps(waited) {
  const layers = waited.layers.filter((layer) => layer.caused.length);
  const size = Math.max(0, ...layers.map(({ caused }) => caused.length));
  const caused = Array(size).fill(0);
  const most = Array(size).fill(0);
  const worst = Array(size).fill(null);
  for (const layer of layers) {
    layer.caused.forEach((waiting, rank) => {
      caused[rank] += waiting;
      if (waiting > most[rank]) [most[rank], worst[rank]] = [waiting, layer.layer];
    });
  }
  return { caused, worst_layer: worst, busiest: waited.hottest };
}

/** The panel of the Overview. */
export function causesPanel() {
  const table = sortTable("Who causes the waiting, by EP rank", COLUMNS, { by: 1, what: "EP ranks" });
  const reason = h("p", { class: "nodata", text: "Asking who causes it…" });
  const { element, hint } = panel("Who causes the waiting", "", table.element, reason);
  table.element.hidden = true;
  setAttribute(element, "data-state", "loading");
  element.classList.add("causes");
  return {
    element,
    /** The EP ranks whose rows are shown now. */
    visible: () => /** @type {Cause[]} */ (table.visible()).map(({ rank }) => rank),
    /** @param {any} view @param {any} waited @param {any} trend of /v1/trend with `ep_ranks`, of those that are shown at least */
    update(view, waited, trend) {
      setAttribute(element, "data-state", null);
      const { causes, bySteps, untold } = causesOf(view, waited);
      const known = causes.some(({ load }) => load !== null);
      table.element.hidden = !known;
      reason.hidden = known;
      setText(reason, known ? "" : view.layers.find((layer) => layer.ep_reason)?.ep_reason ?? "No layer was seen in this window.");
      const unknown = untold > SMALL ? `; of ${percent(untold, 0)} it isn't known: steps stored before it was counted` : "";
      setText(hint, known ? `EP ranks, who hold the chosen experts; ${bySteps ? BY_STEPS : BY_SUMS}${unknown}` : "");
      const most = Math.max(...causes.map(({ caused }) => caused), 0);
      const lines = new Map((trend?.ep_rank_ids ?? []).map((rank, i) => [rank, trend.ep_ranks[i]]));
      table.update(causes.map((cause) => ({ ...cause, most, trend: lines.get(cause.rank) ?? [] })));
    },
  };
}

/** @type {import("./sorttable.js").Column[]} */
const COLUMNS = [
  { name: "EP rank", rising: true, key: ({ rank }) => rank, show: (cell, { rank }) => setText(cell, `${rank}`) },
  {
    name: "waiting that it caused",
    hint: "In every layer of every step all EP ranks wait for the busiest one: max − mean slots. This is the share of all waiting for which this rank was the busiest. The line is an even share.",
    wide: true,
    key: ({ caused }) => caused,
    make: (cell) => cell.append(makeBar()),
    show: (cell, { caused, most, even }) => setBar(cell.firstChild, { value: caused, most: Math.max(most, 1.2 * even), mark: even, hot: caused > OFTEN * even }),
  },
  { name: "share", number: true, key: ({ caused }) => caused, show: (cell, { caused }) => setText(cell, percent(caused, 1)) },
  { name: "busiest in", hint: "Share of all steps × layers in which it was the busiest; ranks that tie share it.", number: true, key: ({ busiest }) => busiest, show: (cell, { busiest }) => setText(cell, percent(busiest, 1)) },
  { name: "load", hint: "Slots over all layers in this window, as a multiple of a fair share.", number: true, key: ({ load }) => load ?? -1, show: (cell, { load }) => setText(cell, load === null ? "–" : times(load)) },
  {
    name: "load over time",
    hint: "Slots over all layers, against a fair share (the thin line).",
    make: (cell) => cell.append(spark()),
    show: (cell, { trend, rank }) => drawSpark(cell.firstChild, trend, 2, `Load of EP rank ${rank} over time`),
  },
  {
    name: "where most",
    hint: "The layer in which it caused most waiting, and the busiest of the experts that only this rank holds there.",
    make: (cell) => cell.append(h("a"), h("span")),
    show: (cell, { layer, expert }) => {
      const [a, more] = cell.children;
      setText(a, layer === null ? "" : `layer ${layer}`);
      setAttribute(a, "href", layer === null ? null : link("layer", { layer }));
      setText(more, expert ? ` · expert ${expert.expert} (${times(expert.over_fair)})` : "");
    },
  },
];

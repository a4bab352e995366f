// Every expert of every layer.

import { get } from "../api.js";
import { barTable } from "../bars.js";
import { choice, h, panel, scroll, setText } from "../dom.js";
import { count, percent, plural, times } from "../format.js";
import { DEAD, HOT, NONE } from "../grid.js";
import { gridPanel } from "../gridpanel.js";
import { arrange, groups, ownerText } from "../layout.js";
import { HOT_FROM } from "../measures.js";
import { phaseNote } from "../phase.js";
import { change, go } from "../route.js";
import { deviation, idTicks, quantile, roundUp, share } from "../scales.js";

const HOTTEST = 10;

/** @returns {import("../main.js").View} */
export function create() {
  let shown = /** @type {any} */ (null);
  const map = gridPanel("Experts by layer", "Point at a cell for its numbers; click it for its layer.", {
    describe: (row, column) => describe(shown, row, column),
    open: (row) => go("layer", { layer: shown.layers[row].layer }),
    marks: true,
  });
  const tools = makeTools();
  map.tools.append(...tools.elements);
  const hottest = barTable("Hottest experts", ["expert", "", "slots", "of a fair share"], ["of a fair share"]);
  const dead = h("p");
  const unphased = phaseNote();
  const element = h(
    "div",
    { class: "stack" },
    h("h1", { class: "unseen", text: "Heatmap" }),
    unphased.element,
    map.element,
    h("div", { class: "columns" }, panel("Hottest experts", "by multiple of a fair share", scroll("Hottest experts", hottest.element)).element, panel("Dead experts", "no slot in this window", dead).element),
  );
  return {
    element,
    async refresh({ route, ranks: _ranks, deployment, query, signal }) {
      const options = read(route.params);
      tools.update(options, deployment);
      const view = await get("v1/view", { ...query, dp_rank: options.dpRank, parts: ["counts", "owners"] }, signal);
      shown = build(view, options);
      unphased.update(view);
      tools.allowGroups(view.owners?.some((owners) => owners));
      map.update(shown.data, { low: shown.scale.low, high: shown.scale.high, note: note(view) });
      drawHottest(hottest, shown);
      setText(dead, deadText(shown));
    },
    destroy: () => map.destroy(),
  };
}

/** @param {URLSearchParams} params */
const read = (params) => ({
  scale: params.get("scale") ?? "deviation",
  byLoad: params.get("sort") !== "id",
  grouped: params.get("group") !== "none",
  dpRank: params.get("dp_rank"),
});

function makeTools() {
  const scale = choice("Show", (value) => change({ scale: value === "deviation" ? null : value }));
  const rank = choice("Tokens of", (value) => change({ dp_rank: value }));
  const sort = choice("Experts", (value) => change({ sort: value === "load" ? null : value }));
  const box = /** @type {HTMLInputElement} */ (h("input", { type: "checkbox", on: { change: () => change({ group: box.checked ? null : "none" }) } }));
  const group = h("label", {}, box, "group by EP rank");
  return {
    elements: [scale.element, rank.element, sort.element, group],
    update(options, deployment) {
      scale.set([["deviation", "deviation from a fair share"], ["share", "share of the layer's slots"]], options.scale);
      rank.set([["", "all DP ranks"], ...deployment.dp_ranks.map((r) => [`${r.dp_rank}`, `DP rank ${r.dp_rank}`])], options.dpRank ?? "");
      sort.set([["load", "by load"], ["id", "by id"]], options.byLoad ? "load" : "id");
      box.checked = options.grouped;
    },
    allowGroups(known) {
      box.disabled = !known;
      group.title = known ? "" : "Where the experts are isn't known";
    },
  };
}

/** Everything that the grid and the readout need, from an answer. */
export function build(view, options) {
  const arranged = arrange(view, options);
  const columns = Math.max(0, ...view.layers.map((layer) => layer.num_experts));
  const values = new Float32Array(view.layers.length * columns).fill(NaN);
  const marks = new Uint8Array(values.length);
  const cells = [];
  view.layers.forEach((layer, r) => {
    const counts = view.counts[r];
    if (!counts || !layer.slots) return;
    arranged[r].forEach((expert, c) => {
      const part = counts[expert] / layer.slots;
      const ratio = part * layer.num_experts;
      cells.push({ at: r * columns + c, part, ratio, layer: layer.layer, expert, slots: counts[expert] });
      marks[r * columns + c] = !counts[expert] ? DEAD : ratio >= HOT_FROM ? HOT : NONE;
    });
  });
  const scale = options.scale === "share" ? share(roundUp(quantile(cells.map((cell) => cell.part), 0.995))) : deviation();
  for (const cell of cells) values[cell.at] = scale.value(cell.ratio, cell.part);
  const spans = options.grouped ? groups(view, arranged) : null;
  const data = {
    rows: view.layers.map((layer) => `${layer.layer}`),
    columns,
    values,
    marks,
    palette: scale.palette,
    ticks: ticks(columns, options, spans),
    breaks: spans?.slice(1).map((span) => span.from),
  };
  return { view, layers: view.layers, arranged, cells, scale, data };
}

function ticks(columns, options, spans) {
  if (spans) return spans.map((span) => ({ at: (span.from + span.to - 1) / 2, text: span.rank < 0 ? "?" : `EP ${span.rank}` }));
  if (options.byLoad) return [{ at: columns * 0.03, text: "most" }, { at: columns * 0.96, text: "least" }];
  return idTicks(columns);
}

function describe(shown, row, column) {
  const layer = shown.layers[row];
  const expert = shown.arranged[row][column];
  const slots = shown.view.counts[row]?.[expert];
  if (expert === undefined) return `layer ${layer.layer}`;
  if (slots === undefined || !layer.slots) return `layer ${layer.layer}: ${layer.reason ?? "no sample"}`;
  const part = slots / layer.slots;
  const ratio = part * layer.num_experts;
  const mark = !slots ? "dead" : ratio >= HOT_FROM ? "hot" : null;
  return [
    `layer ${layer.layer}`, `expert ${expert}`, ownerText(shown.view.owners?.[row]?.[expert]), `${count(slots)} slots`,
    `${percent(part)} of the layer's`, `${times(ratio)} a fair share`, mark,
  ].filter(Boolean).join(" · ");
}

function note(view) {
  const absent = view.absent.some((item) => item.layer === null) ? "; MoE layers are absent, it isn't known which" : view.absent.length ? `; ${plural(view.absent.length, "layer")} of the model's config absent` : "";
  const hidden = (view.uncovered.length ? `; ${plural(view.uncovered.length, "layer")} can't be seen` : "") + absent;
  return `${view.tokens === null ? "unknown" : count(view.tokens)} tokens${view.phase ? ` of ${view.phase}` : ""}, ${plural(view.layers.length, "MoE layer")}${hidden}${view.window.truncated ? "; the window begins before what is remembered" : ""}`;
}

function drawHottest(table, shown) {
  const top = shown.cells.toSorted((a, b) => b.ratio - a.ratio).slice(0, HOTTEST);
  table.update(
    top.map((cell) => ({ head: `layer ${cell.layer}, expert ${cell.expert}`, value: cell.ratio, text: count(cell.slots), mark: 1, hot: cell.ratio >= HOT_FROM, cells: [times(cell.ratio)] })),
    Math.max(1.2, top[0]?.ratio ?? 1),
  );
}

function deadText(shown) {
  const dead = shown.cells.filter((cell) => !cell.slots);
  if (!shown.cells.length && shown.view.phase_reason) return "Not known.";
  if (!shown.cells.length) return "No tokens in this window: send requests, or choose a longer window.";
  if (!dead.length) return "None: every expert got at least one slot in every layer.";
  const layers = new Map();
  for (const cell of dead) layers.set(cell.layer, [...(layers.get(cell.layer) ?? []), cell.expert]);
  const worst = [...layers].sort((a, b) => b[1].length - a[1].length || a[0] - b[0]).slice(0, 8);
  const list = worst.map(([layer, experts]) => `layer ${layer}: ${experts.length > 6 ? plural(experts.length, "expert") : experts.sort((a, b) => a - b).join(", ")}`);
  return `${count(dead.length)} of ${count(shown.cells.length)}, in ${plural(layers.size, "layer")}. ${list.join("; ")}${layers.size > worst.length ? "; …" : "."}`;
}

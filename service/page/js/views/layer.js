// One layer: its measures, its experts, its EP ranks, whose tokens go where.

import { get } from "../api.js";
import { barTable } from "../bars.js";
import { choice, h, panel, patch, scroll, setAttribute, setText } from "../dom.js";
import { epBars, flowGrid } from "../eprank.js";
import { count, measure, measured, percent, times } from "../format.js";
import { ownerText } from "../layout.js";
import { HOT_FROM, MEASURES } from "../measures.js";
import { phaseNote } from "../phase.js";
import { plainTable } from "../plaintable.js";
import { change, link } from "../route.js";
import { imbalanceLevel, tiles } from "../tiles.js";

const TOP_EXPERTS = 10;

/** @returns {import("../main.js").View} */
export function create() {
  const title = h("h1");
  const before = h("a", { text: "previous" });
  const after = h("a", { text: "next" });
  const top = tiles();
  const experts = expertBars();
  const measures = measureTable();
  const most = barTable("Experts with the most slots", ["expert", "", "slots", "of a fair share", "held by"]);
  const bars = epBars();
  const flows = flowGrid();
  const note = h("p", { class: "nodata" });
  const unphased = phaseNote();
  const body = h(
    "div",
    { class: "stack" },
    top.element,
    experts.element,
    h("div", { class: "columns" }, panel("Experts with the most slots", "", scroll("Experts with the most slots", most.element)).element, bars.element, flows.element, measures.element),
  );
  const element = h("div", { class: "stack" }, h("div", { class: "tools" }, title, before, after), unphased.element, note, body);
  return {
    element,
    async refresh({ route, query, signal }) {
      const known = await get("v1/view", { ...query, parts: ["counts", "owners"] }, signal);
      const ids = known.layers.map((layer) => layer.layer);
      const id = route.params.has("layer") ? Number(route.params.get("layer")) : ids[0];
      const at = ids.indexOf(id);
      setText(title, id !== undefined ? `Layer ${id}` : "No layer");
      unphased.update(known);
      for (const [a, other] of /** @type {const} */ ([[before, ids[at - 1]], [after, ids[at + 1]]])) {
        a.hidden = at < 0 || other === undefined;
        setAttribute(a, "href", link("layer", { layer: other ?? id }));
      }
      body.hidden = at < 0;
      note.hidden = at >= 0 && !known.layers[at].reason;
      if (at < 0) {
        if (id === undefined) {
          setText(note, "No MoE layer can be seen.");
          return;
        }
        const reason = [...known.uncovered, ...known.absent].find((item) => item.layer === id)?.reason;
        setText(note, reason ? `This layer can't be seen: ${reason}.` : `There is no MoE layer ${id}. There are ${ids.join(", ") || "none"}.`);
        return;
      }
      const view = await get("v1/view", { ...query, parts: ["flows"], flow_layer: id }, signal);
      const layer = { ...known.layers[at], counts: known.counts[at], owners: known.owners?.[at], unknown: known.phase_reason };
      setText(note, layer.reason ?? "");
      top.update(summary(layer));
      measures.update(layer);
      experts.update(layer, route.params.get("sort") === "load");
      drawMost(most, layer);
      bars.update(known, id);
      flows.update(view, route.params);
    },
    destroy: () => flows.destroy(),
  };
}

function summary(layer) {
  const ep = layer.over_ep_ranks;
  const over = layer.over_experts;
  return [
    { name: "Tokens", value: layer.unknown ? "–" : count(layer.tokens), hint: layer.unknown ? "" : `${count(layer.slots)} slots, top-${layer.top_k} of ${layer.num_experts}` },
    { name: `${MEASURES.imbalance_ratio.title} over EP ranks`, value: measure(ep?.imbalance_ratio), hint: ep ? `balancedness ${measure(ep.balancedness)}${layer.ep_estimate ? "; an estimate: " + layer.ep_estimate : ""}` : layer.ep_reason ?? "", level: imbalanceLevel(ep?.imbalance_ratio) },
    { name: `${MEASURES.max_vio.title} over experts`, value: measure(over?.max_vio), hint: over ? `the most chosen has ${times(over.imbalance_ratio)} a fair share` : layer.reason ?? "" },
    { name: MEASURES.normalised_entropy.title, value: measure(over?.normalised_entropy), hint: over ? `as if ${count(over.normalised_entropy * layer.num_experts)} of ${layer.num_experts} were in use` : "" },
    { name: "Dead experts", value: over ? count(over.dead) : "–", hint: `of ${layer.num_experts}` },
  ];
}

/** Every measure of the layer, over its EP ranks and over its experts. */
function measureTable() {
  const { element: table, rows } = plainTable("Measures of this layer", ["measure", "over EP ranks", "over experts", "best"]);
  const { element } = panel("Measures", "point at one for its formula", scroll("Measures of this layer", table));
  const known = Object.entries(MEASURES);
  return {
    element,
    update(layer) {
      rows(
        known.map(([name, { title, unit, best }]) => [title, measured(layer.over_ep_ranks?.[name], unit), measured(layer.over_experts?.[name], unit), best]),
        known.map(([, { formula, meaning }]) => `${formula}. ${meaning}`),
      );
    },
  };
}

/** Columns, one an expert. */
function expertBars() {
  const sort = choice("Experts", (value) => change({ sort: value === "id" ? null : value }));
  const hint = "Point at a column for its numbers. The dashed line is a fair share.";
  const readout = h("p", { class: "readout muted", "aria-live": "polite", text: hint });
  const columns = h("div", { class: "histogram", role: "img", "aria-label": "Slots of every expert" });
  const line = h("b");
  const { element } = panel("Slots by expert", "", h("div", { class: "tools" }, sort.element), h("div", { class: "histogram-box" }, columns), readout);
  columns.addEventListener("pointerover", (event) => setText(readout, /** @type {HTMLElement} */ (event.target).dataset?.text ?? hint));
  columns.addEventListener("pointerleave", () => setText(readout, hint));
  return {
    element,
    update(layer, byLoad) {
      sort.set([["id", "by id"], ["load", "by load"]], byLoad ? "load" : "id");
      line.remove();
      const counts = layer.slots ? layer.counts : [];
      const order = counts.map((slots, expert) => ({ slots, expert }));
      if (byLoad) order.sort((a, b) => b.slots - a.slots || a.expert - b.expert);
      const fair = layer.slots / layer.num_experts;
      const most = Math.max(...counts, 1.5 * fair);
      patch(columns, order, () => h("i"), (bar, { slots, expert }) => {
        bar.style.height = `${(100 * slots) / most}%`;
        setAttribute(bar, "data-hot", slots >= HOT_FROM * fair ? "" : null);
        bar.dataset.text = [`expert ${expert}`, ownerText(layer.owners?.[expert]), `${count(slots)} slots`, percent(slots / layer.slots), `${times(slots / fair)} a fair share`].filter(Boolean).join(" · ");
      });
      if (!counts.length) return;
      line.style.bottom = `${(100 * fair) / most}%`;
      columns.append(line);
    },
  };
}

function drawMost(table, layer) {
  const fair = layer.slots / layer.num_experts;
  const order = (layer.slots ? layer.counts : []).map((slots, expert) => ({ slots, expert })).sort((a, b) => b.slots - a.slots).slice(0, TOP_EXPERTS);
  table.update(
    order.map(({ slots, expert }) => ({ head: `${expert}`, value: slots, text: count(slots), mark: fair, hot: slots >= HOT_FROM * fair, cells: [times(slots / fair), ownerText(layer.owners?.[expert]) ?? "not known"] })),
    Math.max(order[0]?.slots ?? 0, 1.2 * fair),
  );
}

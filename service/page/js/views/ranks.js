// Which EP rank is the bottleneck, in which layer, and whose tokens go there.

import { get } from "../api.js";
import { blockGrid } from "../blockgrid.js";
import { sideOf, single } from "../blocks.js";
import { choice, h } from "../dom.js";
import { epBars, flowGrid } from "../eprank.js";
import { count, times } from "../format.js";
import { phaseNote } from "../phase.js";
import { change, go } from "../route.js";
import { stragglers } from "../stragglers.js";

/** @returns {import("../main.js").View} */
export function create() {
  let shown = /** @type {any[]} */ ([]);
  const layerChoice = choice("Layer", (value) => change({ layer: value }));
  const bars = epBars();
  const flows = flowGrid();
  const unphased = phaseNote();
  const waiting = stragglers();
  const map = blockGrid("EP ranks by layer", "Point at a cell for its numbers; click it for its layer.", {
    rows: { name: "layer", param: null },
    columns: { name: "EP rank", param: "ep" },
    describe(row, column) {
      const layer = shown[row];
      if (!layer.over_ep_ranks) return `layer ${layer.layer}: ${layer.ep_reason ?? "no sample"}`;
      const load = layer.ep_slots[column] ?? 0;
      return `layer ${layer.layer} · EP rank ${column} · ${count(load)} slots · ${times(load / fairOf(layer))} a fair share · the layer's imbalance ratio is ${layer.over_ep_ranks.imbalance_ratio.toFixed(3)}`;
    },
    open: (row) => go("layer", { layer: shown[row].layer }),
  });
  const element = h(
    "div",
    { class: "stack" },
    h("h1", { class: "unseen", text: "Ranks" }),
    waiting.element,
    unphased.element,
    map.element,
    waiting.details,
    h("div", { class: "tools" }, layerChoice.element),
    h("div", { class: "columns" }, bars.element, flows.element),
  );
  return {
    element,
    async refresh({ route, query, signal }) {
      const only = route.params.has("layer") ? Number(route.params.get("layer")) : null;
      const { phase: _both, ...window } = query;
      const [view, waited] = await Promise.all([
        get("v1/view", { ...query, parts: ["owners", "flows"], flow_layer: only }, signal),
        get("v1/stragglers", window, signal),
      ]);
      waiting.update(waited);
      shown = view.layers;
      unphased.update(view);
      layerChoice.set([["", "all layers"], ...view.layers.map((layer) => [`${layer.layer}`, `layer ${layer.layer}`])], only === null ? "" : `${only}`);
      draw(map, view, route.params);
      bars.update(view, only);
      flows.update(view, route.params);
    },
    destroy() {
      map.destroy();
      flows.destroy();
    },
  };
}

const fairOf = (layer) => layer.ep_slots.reduce((a, b) => a + b, 0) / layer.ep_slots.length;

/** Layers by EP rank, as multiples of the layer's fair share. */
function draw(map, view, params) {
  const columns = Math.max(view.ep_size, ...view.layers.map((layer) => layer.ep_slots?.length ?? 0));
  const fair = view.layers.map((layer) => (layer.over_ep_ranks ? fairOf(layer) : NaN));
  const sides = [single(view.layers.map((layer) => layer.layer)), sideOf([...Array(columns).keys()], params.get("ep"))];
  map.update(sides, (r, c) => (view.layers[r].ep_slots?.[c] ?? NaN) / fair[r], "slots, against a fair share of the layer's");
}

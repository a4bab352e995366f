// Which EP rank is the bottleneck, in which layer, and whose tokens go there.

import { get } from "../api.js";
import { choice, h } from "../dom.js";
import { epBars, flowGrid } from "../eprank.js";
import { count, times } from "../format.js";
import { gridPanel } from "../gridpanel.js";
import { phaseNote } from "../phase.js";
import { change, go } from "../route.js";
import { deviation, idTicks } from "../scales.js";
import { stragglers } from "../stragglers.js";

/** @returns {import("../main.js").View} */
export function create() {
  let shown = /** @type {any[]} */ ([]);
  const layerChoice = choice("Layer", (value) => change({ layer: value }));
  const bars = epBars();
  const flows = flowGrid();
  const unphased = phaseNote();
  const waiting = stragglers();
  const map = gridPanel("EP ranks by layer", "Point at a cell for its numbers; click it for its layer.", {
    describe(row, column) {
      const layer = shown[row];
      if (!layer.over_ep_ranks) return `layer ${layer.layer}: ${layer.ep_reason ?? "no sample"}`;
      const load = layer.ep_slots[column];
      const fair = layer.ep_slots.reduce((a, b) => a + b, 0) / layer.ep_slots.length;
      return `layer ${layer.layer} · EP rank ${column} · ${count(load)} slots · ${times(load / fair)} a fair share · the layer's imbalance ratio is ${layer.over_ep_ranks.imbalance_ratio.toFixed(3)}`;
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
      map.update(data(view), { ...deviation(), note: "slots, against a fair share of the layer's" });
      bars.update(view, only);
      flows.update(view);
    },
    destroy() {
      map.destroy();
      flows.destroy();
    },
  };
}

function data(view) {
  const columns = Math.max(view.ep_size, ...view.layers.map((layer) => layer.ep_slots?.length ?? 0));
  const scale = deviation();
  const values = new Float32Array(view.layers.length * columns).fill(NaN);
  view.layers.forEach((layer, r) => {
    if (!layer.over_ep_ranks) return;
    const fair = layer.ep_slots.reduce((a, b) => a + b, 0) / layer.ep_slots.length;
    layer.ep_slots.forEach((load, c) => {
      values[r * columns + c] = scale.value(load / fair, 0);
    });
  });
  return { rows: view.layers.map((layer) => `${layer.layer}`), columns, values, palette: scale.palette, ticks: idTicks(columns) };
}

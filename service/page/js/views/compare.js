// Two windows, or two models of one shape: where the routing differs.

import { ApiError, get } from "../api.js";
import { barTable } from "../bars.js";
import { choice, h, panel, scroll, setText } from "../dom.js";
import { count, duration, percent, time } from "../format.js";
import { gridPanel } from "../gridpanel.js";
import { bounds, change, go, previous } from "../route.js";
import { difference, idTicks, quantile, roundUp } from "../scales.js";

/** @returns {import("../main.js").View} */
export function create() {
  let shown = /** @type {any} */ (null);
  const model = choice("Against", (value) => change({ base_of: value }));
  const window = choice("in", (value) => change({ base: value === "previous" ? null : value }));
  const words = h("p", { class: "muted" });
  const note = h("p", { class: "nodata" });
  const map = gridPanel("Difference of shares", "Point at a cell for its numbers; click it for its layer.", {
    describe: (row, column) => describe(shown.layers[row], column),
    open: (row) => go("layer", { layer: shown.layers[row].layer }),
  });
  const table = barTable("Divergence of each layer", ["layer", "", "divergence"]);
  const divergence = panel("Divergence by layer", "Jensen-Shannon, bits; 0 is alike, 1 is nothing in common", scroll("Divergence by layer", table.element));
  const body = h("div", { class: "stack" }, map.element, divergence.element);
  const element = h("div", { class: "stack" }, h("h1", { class: "unseen", text: "Compare" }), h("div", { class: "tools" }, model.element, window.element), words, note, body);
  return {
    element,
    async refresh({ route, ranks, deployment, query, signal }) {
      const { params } = route;
      const other = baseOf(params, ranks, deployment);
      const before = previous(params);
      const mode = params.get("base") ?? (before ? "previous" : "all");
      model.set(ranks.deployments.map((d) => [JSON.stringify([d.server, d.model]), `${d.model} on ${d.server}`]), JSON.stringify([other.server, other.model]));
      window.set(/** @type {[string, string][]} */ ([...(before ? [["previous", "the window before"]] : []), ["same", "the same window"], ["all", "all since the start"]]), mode);
      const base = mode === "all" ? { start: null, end: null } : mode === "same" ? bounds(params) : before;
      if (!base) throw new ApiError(400, "No window before", "What was since the start has no window before it: choose a shorter window above.");
      shown = await get("v1/compare", { ...query, base_server: other.server, base_model: other.model, base_start: base.start, base_end: base.end }, signal);
      setText(words, `${side(shown.side)}, against ${side(shown.base)}.`);
      const known = shown.layers.filter((layer) => layer.divergence !== null);
      body.hidden = !known.length;
      note.hidden = !!known.length;
      setText(note, known.length ? "" : `Nothing to compare: ${shown.layers[0]?.reason ?? "no layer was seen"}. Send requests, or choose longer windows.`);
      if (known.length) draw(map, table, shown);
    },
    destroy: () => map.destroy(),
  };
}

function baseOf(params, ranks, deployment) {
  try {
    const [server, model] = JSON.parse(params.get("base_of") ?? "");
    return ranks.deployments.find((d) => d.server === server && d.model === model) ?? deployment;
  } catch {
    return deployment;
  }
}

function side({ model, window, tokens }) {
  const { used_start: start, used_end: end } = window;
  return `${model}, ${time(start.earliest)} to ${time(end.latest)} (${duration(Math.max(0, end.latest - start.earliest))}, ${count(tokens)} tokens)`;
}

function draw(map, table, shown) {
  const columns = Math.max(...shown.layers.map((layer) => layer.num_experts));
  const parts = new Float32Array(shown.layers.length * columns).fill(NaN);
  shown.layers.forEach((layer, r) => layer.difference?.forEach((value, c) => {
    parts[r * columns + c] = value * layer.num_experts;
  }));
  const scale = difference(roundUp(quantile(Array.from(parts, Math.abs), 0.99)));
  map.update(
    { rows: shown.layers.map((layer) => `${layer.layer}`), columns, values: parts.map((v) => scale.value(v, 0)), palette: scale.palette, ticks: idTicks(columns) },
    { low: scale.low, high: scale.high, note: "share now less share before, against a fair share" },
  );
  const layers = shown.layers.filter((layer) => layer.divergence !== null).sort((a, b) => b.divergence - a.divergence);
  table.update(layers.map((layer) => ({ head: `${layer.layer}`, value: layer.divergence, text: layer.divergence.toFixed(4) })), layers[0].divergence);
}

function describe(layer, expert) {
  if (!layer.difference) return `layer ${layer.layer}: ${layer.reason}`;
  const value = layer.difference[expert];
  const part = value * layer.num_experts;
  return `layer ${layer.layer} · expert ${expert} · ${value < 0 ? "−" : "+"}${percent(Math.abs(value), 3)} of the layer's slots · ${Math.abs(part).toFixed(2)}× a fair share ${value < 0 ? "less" : "more"} · divergence ${layer.divergence.toFixed(4)}`;
}

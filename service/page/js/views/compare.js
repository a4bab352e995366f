// Two windows, two phases, or two models of one shape: where the routing differs.

import { get } from "../api.js";
import { barTable } from "../bars.js";
import { instant } from "../controls.js";
import { choice, h, panel, scroll, setText } from "../dom.js";
import { count, duration, percent, span } from "../format.js";
import { gridPanel } from "../gridpanel.js";
import { PHASES, phaseOf } from "../phase.js";
import { bounds, change, go, previous, seconds } from "../route.js";
import { difference, idTicks, quantile, roundUp } from "../scales.js";

/** @returns {import("../main.js").View} */
export function create() {
  let shown = /** @type {any} */ (null);
  const model = choice("Against", (value) => change({ base_of: value }));
  let suggested = { base_from: 0, base_to: 0 };
  const window = choice("in", (value) => change(value === "window" ? { base: value, ...suggested } : { base: value === "previous" ? null : value, base_from: null, base_to: null }));
  const from = instant("base_from", "Base from");
  const to = instant("base_to", "Base to");
  const phase = choice("Base's tokens", (value) => change({ base_phase: value }));
  const words = h("p", { class: "muted" });
  const note = h("p", { class: "nodata" });
  const map = gridPanel("Difference of shares", "Point at a cell for its numbers; click it for its layer.", {
    describe: (row, column) => describe(shown.layers[row], column),
    open: (row) => go("layer", { layer: shown.layers[row].layer }),
  });
  const table = barTable("Divergence of each layer", ["layer", "", "divergence"]);
  const divergence = panel("Divergence by layer", "Jensen-Shannon, bits; 0 is alike, 1 is nothing in common", scroll("Divergence by layer", table.element));
  const body = h("div", { class: "stack" }, map.element, divergence.element);
  const element = h("div", { class: "stack" }, h("h1", { class: "unseen", text: "Compare" }), h("div", { class: "tools" }, model.element, window.element, from.element, to.element, phase.element), words, note, body);
  return {
    element,
    async refresh({ route, ranks, deployment, query, now, signal }) {
      const { params } = route;
      const other = baseOf(params, ranks, deployment);
      const before = previous(params);
      const mode = params.get("base") ?? (before ? "previous" : "all");
      model.set(ranks.deployments.map((d) => [JSON.stringify([d.server, d.model]), `${d.model} on ${d.server}`]), JSON.stringify([other.server, other.model]));
      window.set(/** @type {[string, string][]} */ ([...(before ? [["previous", "the window before"]] : []), ["same", "the same window"], ["all", "all since the start"], ["window", "another window…"]]), mode);
      suggested = suggestion(before, now);
      for (const control of [from, to]) control.update(params, mode === "window");
      phase.set(phases(query.phase), basePhase(params, query.phase) ?? "");
      const base = baseWindow(params, mode, before);
      let refused = base ? "" : mode === "window" ? "Choose the begin and the end of the base." : "What was since the start has no window before it: choose a shorter window above, or another base.";
      if (base) {
        const asked = { ...query, base_server: other.server, base_model: other.model, base_start: base.start, base_end: base.end, base_phase: basePhase(params, query.phase) };
        try {
          shown = await get("v1/compare", asked, signal);
        } catch (error) {
          if (error.status !== 400) throw error;
          refused = `${error.title}: ${error.detail}`; // the controls stay, to choose something else
        }
      }
      const known = refused ? [] : shown.layers.filter((layer) => layer.divergence !== null);
      setText(words, refused ? "" : `${side(shown.side)}, against ${side(shown.base)}.`);
      body.hidden = !known.length;
      note.hidden = !!known.length;
      setText(note, refused || (known.length ? "" : `Nothing to compare: ${shown.layers[0]?.reason ?? "no layer was seen"}. Send requests, or choose longer windows.`));
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

/** The bounds of the base; null where it has none. */
function baseWindow(params, mode, before) {
  if (mode === "all") return { start: null, end: null };
  if (mode === "same") return bounds(params);
  if (mode !== "window") return before;
  const [start, end] = [params.get("base_from"), params.get("base_to")];
  return start && end ? { start, end } : null;
}

/** The window that "another window" begins with: the one before, else the five minutes before now. */
function suggestion(before, now) {
  const at = Math.floor(now);
  return before ? { base_from: Math.floor(seconds(before.start, now)), base_to: Math.floor(seconds(before.end, now)) } : { base_from: at - 600, base_to: at - 300 };
}

/** What the base's tokens may be: those of the window compared (""), or of one phase. */
const phases = (mine) => /** @type {[string, string][]} */ ([["", `${mine ?? "prefill and decode"}, as above`], ...PHASES.filter(([value]) => value && value !== mine)]);

function basePhase(params, mine) {
  const named = phaseOf(params, "base_phase");
  return named === mine ? null : named;
}

function side({ model, window, tokens, phase }) {
  const { used_start: start, used_end: end } = window;
  const known = tokens === null ? "unknown tokens" : `${count(tokens)} tokens`;
  return `${model}, ${span(start.earliest, end.latest)} (${duration(Math.max(0, end.latest - start.earliest))}, ${known}${phase ? ` of ${phase}` : ""})`;
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
    { low: scale.low, high: scale.high, note: "share in the window less share in the base, against a fair share" },
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

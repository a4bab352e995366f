// One trace: the experts of every layer and position, one layer's experts, another trace beside it, downloads.

import { get } from "../api.js";
import { barTable } from "../bars.js";
import { AGAIN, MISSING, markKey } from "../columnmarks.js";
import { choice, h, panel, scroll, setAttribute, setText } from "../dom.js";
import { count, draftsOf, duration, instant, percent, ranges } from "../format.js";
import { gridPanel } from "../gridpanel.js";
import { change, link } from "../route.js";
import { SPAN, bySlot, expertsAt, inCommon, layerExperts, likeBefore, likeOther } from "../routing.js";
import { tiles } from "../tiles.js";

const FORMATS = /** @type {const} */ ([
  ["npz", "numpy.load gives routed_experts [positions, layers, top_k]"],
  ["parquet", "a row a position; needs moescope[parquet] where the service runs"],
  ["json", "as the API answers"],
  ["raw", "little-endian int16; its shape is in the header X-Moescope-Shape"],
]);
const ENDINGS = { stop: "it took a token or a text that ends it", length: "it has as many tokens as it may", repetition: "it repeated a pattern", abort: "its client left or aborted it", error: "vLLM failed" };
const POINT = "Point at a cell for its experts";

/** @returns {import("../main.js").View} */
export function create() {
  let asked = "";
  let shown = /** @type {any} */ (null);
  const title = h("h1");
  const back = h("a", { text: "All traces" });
  const ids = h("p", { class: "muted ids" });
  const links = FORMATS.map(([suffix, text]) => h("a", { text: suffix, title: text, download: "" }));
  const top = tiles();
  const keys = [markKey(MISSING, "not computed: a prefix cache had it"), markKey(AGAIN, "computed again after a preemption")];
  const missing = markKey(MISSING, "only one of both has it");
  const show = choice("Show", (value) => change({ slot: value === "1" ? null : value }));
  const before = h("a", { text: "earlier positions" });
  const after = h("a", { text: "later positions" });
  const against = choice("Compare with", (value) => change({ against: value }));
  const map = gridPanel("Experts by layer and position", `${POINT}; click it for its layer.`, {
    describe: (row, at) => describe(shown.trace, row, at),
    open: (row) => change({ layer: shown.trace.layers[row] }),
    legend: keys.map((key) => key.element),
  });
  map.tools.append(show.element, before, after);
  const pick = choice("Layer", (value) => change({ layer: value }));
  const one = gridPanel("Experts of one layer by position", `${POINT}.`, {
    describe: (row, at) => describeExpert(shown, row, at),
  });
  one.tools.append(pick.element);
  const both = gridPanel("Experts in common with the other trace", `${POINT} in both.`, {
    describe: (row, at) => describeBoth(shown, row, at),
    legend: [missing.element],
  });
  const table = barTable("Experts in common in each layer", ["layer", "", "in common", "by chance"], ["by chance"]);
  const compared = h("div", { class: "stack" }, both.element, panel("Experts in common by layer", "of these positions; the line is what chance alone would give", scroll("Experts in common by layer", table.element)).element);
  const downloads = h("span", { class: "downloads" }, h("span", { class: "muted", text: "Download" }), ...links);
  const element = h(
    "div",
    { class: "stack" },
    h("div", { class: "tools" }, title, back, downloads),
    ids,
    top.element,
    map.element,
    one.element,
    h("div", { class: "tools" }, against.element),
    compared,
  );
  return {
    element,
    async refresh({ route, signal }) {
      const { params } = route;
      const id = params.get("trace") ?? "";
      const at = /^\d{1,12}$/.test(params.get("at") ?? "") ? Number(params.get("at")) : 0;
      const other = params.get("against");
      const key = JSON.stringify([id, at, other, params.get("layer"), params.get("slot")]);
      setAttribute(back, "href", link("traces", { trace: null, at: null, layer: null, against: null, slot: null }));
      if (key === asked) return;
      const trace = await ask(id, at, signal);
      const next = { trace, more: trace.more, other: other ? await ask(other, at, signal) : null };
      const page = await get("v1/traces", { server: trace.server, model: trace.model, limit: 50 }, signal);
      shown = { ...next, row: Math.max(0, trace.layers.indexOf(Number(params.get("layer") ?? trace.layers[0]))) };
      setText(title, `Trace ${shortest(trace)}`);
      ids.replaceChildren(h("code", { text: trace.request_id }), ` · ${trace.model} on ${trace.server}, DP rank ${trace.dp_rank} · found by ${trace.names.filter((name) => name !== trace.request_id).join(", ") || "this id only"}`);
      links.forEach((a, i) => {
        setAttribute(a, "href", `v1/traces/${encodeURIComponent(trace.request_id)}.${FORMATS[i][0]}`);
        setAttribute(a, "download", `${trace.request_id}.${FORMATS[i][0]}`);
      });
      top.update(summary(trace));
      drawMap(map, show, shown, params.get("slot") ?? "1");
      turn(before, at > 0, Math.max(0, at - SPAN));
      turn(after, trace.more, at + SPAN);
      drawLayer(one, pick, shown);
      const options = page.traces.filter((item) => item.request_id !== trace.request_id).map((item) => [item.request_id, `${shortest(item)}, ${count(item.tokens)} tokens`]);
      if (other && !options.some(([value]) => value === other)) options.unshift([other, other]);
      against.set(/** @type {[string, string][]} */ ([["", "no other trace"], ...options]), other ?? "");
      compared.hidden = !shown.other;
      if (shown.other) drawBoth(both, table, shown);
      asked = key;
    },
    destroy() {
      for (const item of [map, one, both, ...keys, missing]) item.destroy();
    },
  };
}

/** A span of a trace; `more` says whether positions follow. */
async function ask(id, at, signal) {
  const trace = await get(`v1/traces/${encodeURIComponent(id)}`, { first: at, end: at + SPAN + 1 }, signal);
  trace.more = trace.times_computed.length > SPAN;
  for (const name of ["times_computed", "routed_experts"]) trace[name] = trace[name].slice(0, SPAN);
  return trace;
}

const shortest = (trace) => [...trace.names, trace.request_id].sort((a, b) => a.length - b.length)[0];

function turn(a, possible, at) {
  a.hidden = !possible;
  setAttribute(a, "href", link("trace", { at: at || null }));
}

function summary(trace) {
  const cut = trace.outcome === "cut_off";
  return [
    { name: "Tokens computed", value: count(trace.tokens), hint: `in ${duration(Math.max(0, trace.ended_at - trace.started_at))}, until ${instant(trace.ended_at)}` },
    { name: "Prompt", value: count(trace.prompt_tokens), hint: trace.cached_tokens ? `${count(trace.cached_tokens)} of them from a prefix cache, not computed` : "none from a prefix cache" },
    { name: "Preemptions", value: count(trace.preemptions), hint: trace.preemptions ? "positions were computed again" : "" },
    { name: "Layers", value: count(trace.layers.length), hint: `${ranges(trace.layers)}; top-${[...new Set(trace.top_k)].join(", ")} of ${[...new Set(trace.num_experts)].join(", ")}` },
    { name: "Outcome", value: cut ? "cut off" : trace.finish_reason || "ended", hint: cut ? "its worker was shut down before" : ENDINGS[trace.finish_reason] ?? "finished or aborted", level: cut ? "warn" : null },
    ...(draftsOf(trace) ? [{ name: "Drafts accepted", value: draftsOf(trace), hint: "of the drafts that were computed for it" }] : []),
    ...(trace.lora ? [{ name: "LoRA", value: trace.lora, hint: "its adapter" }] : []),
  ];
}

function drawMap(map, show, { trace }, slot) {
  const most = Math.max(...trace.top_k);
  const slots = Array.from({ length: most }, (_, i) => [`${i + 1}`, `the expert in slot ${i + 1}`]);
  const known = slots.some(([value]) => value === slot) || slot === "like" ? slot : "1";
  show.set(/** @type {[string, string][]} */ ([...slots, ["like", "experts in common with the position before"]]), known);
  const words = known === "like" ? { low: "none in common", high: "all" } : { low: "expert 0", high: `expert ${Math.max(...trace.num_experts) - 1}` };
  map.update(known === "like" ? likeBefore(trace) : bySlot(trace, Number(known) - 1), { ...words, note: span(trace) });
}

function span(trace) {
  const n = trace.times_computed.length;
  if (!n) return "no position was computed here";
  const last = trace.first_position + n - 1;
  return `positions ${count(trace.first_position)} to ${count(last)}${trace.more ? ", more follow" : ""}; the line is the end of the prompt`;
}

function drawLayer(one, pick, shown) {
  const { trace, row } = shown;
  pick.set(trace.layers.map((layer) => [`${layer}`, `${layer}`]), `${trace.layers[row]}`);
  shown.one = layerExperts(trace, row);
  const { experts, taken, data } = shown.one;
  one.update(data, { low: "not taken", high: "taken", note: `layer ${trace.layers[row]}: ${experts.length < taken ? `the ${experts.length} most taken of ${count(taken)} experts` : `all ${count(taken)} experts taken`}, the most taken first` });
}

function drawBoth(both, table, { trace, other }) {
  both.update(likeOther(trace, other), { low: "none in common", high: "all", note: `${shortest(trace)} against ${shortest(other)}, position by position` });
  const rows = trace.layers.map((layer, row) => ({ layer, chance: trace.top_k[row] / trace.num_experts[row], share: shareInCommon(trace, other, row) })).filter((item) => item.share !== null);
  rows.sort((a, b) => b.share - a.share || a.layer - b.layer);
  table.update(rows.map((item) => ({ head: `${item.layer}`, value: item.share, text: percent(item.share), mark: item.chance, cells: [percent(item.chance)] })), Math.max(...rows.map((item) => item.share), 1e-9));
}

/** The share of a layer's slots that both gave to the same experts, over positions that both computed; null without any. */
function shareInCommon(trace, other, row) {
  const match = other.layers.indexOf(trace.layers[row]);
  if (match < 0) return null;
  let same = 0, slots = 0;
  trace.times_computed.forEach((n, at) => {
    if (!n || !other.times_computed[at]) return;
    const mine = expertsAt(trace, row, at);
    same += inCommon(mine, expertsAt(other, match, at));
    slots += mine.length;
  });
  return slots ? same / slots : null;
}

function where(trace, at) {
  const position = trace.first_position + at;
  return `position ${position} (${position < trace.prompt_tokens ? "prompt" : "output"})`;
}

function times(n) {
  if (n === 0) return "not computed: a prefix cache had it";
  return n > 1 ? `computed ${n} times` : null;
}

function describe(trace, row, at) {
  const n = trace.times_computed[at];
  const experts = expertsAt(trace, row, at);
  return [`layer ${trace.layers[row]}`, where(trace, at), n ? `experts ${experts.join(", ") || "none: masked"}` : null, times(n)].filter(Boolean).join(" · ");
}

function describeExpert({ trace, row, one }, at, column) {
  const expert = one.experts[at];
  const n = trace.times_computed[column];
  const taken = trace.routed_experts[column][row].includes(expert);
  return [`expert ${expert}`, where(trace, column), n ? (taken ? "taken" : "not taken") : null, times(n), `${count(one.slots.get(expert))} slots in these positions`].filter(Boolean).join(" · ");
}

function describeBoth({ trace, other }, row, at) {
  const match = other.layers.indexOf(trace.layers[row]);
  const head = `layer ${trace.layers[row]} · position ${trace.first_position + at}`;
  if (match < 0) return `${head} · the other trace has no such layer`;
  if (!trace.times_computed[at] || !other.times_computed[at]) return `${head} · only one of both, or neither, was computed`;
  const [mine, theirs] = [expertsAt(trace, row, at), expertsAt(other, match, at)];
  return `${head} · ${inCommon(mine, theirs)} of ${mine.length} in common · ${mine.join(", ")} against ${theirs.join(", ")}`;
}

// Traced requests: search, list, page by page.

import { get } from "../api.js";
import { tag } from "../bars.js";
import { choice, h, panel, patch, scroll, setAttribute, setText } from "../dom.js";
import { count, draftsOf, duration, instant } from "../format.js";
import { nothing } from "../messages.js";
import { change, link } from "../route.js";
import { howToTrace } from "../tracehelp.js";

const PAGE = 50;
const EVERY_S = 5;
const FILTERS = ["request", "dp_rank", "hit_layer", "hit_expert", "min_tokens"];

/** @returns {import("../main.js").View} */
export function create() {
  let asked = { key: "", at: 0 };
  const filters = makeFilters();
  const table = makeTable();
  const none = nothing("");
  const half = h("p", { class: "muted", role: "status", text: "A hit needs both: give layer and expert." });
  const clear = h("button", { type: "button", text: "Clear the filters", on: { click: () => change({ ...noFilters(), cursor: null }) } });
  const longer = h("a", { text: "look at all since the start" });
  const newest = h("a", { text: "Newest" });
  const older = h("a", { text: "Older" });
  const { element: list, hint } = panel(
    "Traced requests",
    "",
    scroll("Traced requests", table.element, true),
    none,
    h("div", { class: "tools" }, newest, older, clear, longer),
  );
  const search = h("div", { class: "stack" }, h("h1", { class: "unseen", text: "Traces" }), filters.element, half, list);
  const element = h("div", { class: "stack" }, search);
  return {
    element,
    async refresh({ route, deployment, query, now, signal }) {
      const { params } = route;
      const key = JSON.stringify([query, params.get("cursor"), ...FILTERS.map((name) => params.get(name))]);
      if (key === asked.key && Math.abs(now - asked.at) < EVERY_S) return;
      filters.update(params, deployment);
      const wanted = wantedOf(params);
      half.hidden = whole(params.get("hit_layer")) === whole(params.get("hit_expert")) || wanted.layer !== null;
      let answer;
      try {
        answer = await get("v1/traces", { ...query, ...wanted, limit: PAGE, cursor: params.get("cursor") }, signal);
        if (!answer.traces.length && !(await get("v1/traces", { limit: 1 }, signal)).traces.length) {
          element.replaceChildren(howToTrace("none"));
          asked = { key, at: now };
          return;
        }
      } catch (error) {
        if (!error.type?.endsWith(":no-store")) throw error;
        element.replaceChildren(howToTrace("off"));
        asked = { key, at: now };
        return;
      }
      if (search.parentElement !== element) element.replaceChildren(search);
      const { traces, next_cursor: next } = answer;
      table.update(traces, wanted.layer);
      table.element.hidden = !traces.length;
      none.hidden = !!traces.length;
      setText(none, "No traced request in this window fits. Traces appear when vLLM is done with their request.");
      clear.hidden = !FILTERS.some((name) => params.has(name));
      longer.hidden = !!traces.length || params.get("window") === "all";
      setAttribute(longer, "href", link("traces", { window: "all", from: null, to: null, cursor: null }));
      newest.hidden = !params.has("cursor");
      setAttribute(newest, "href", link("traces", { cursor: null }));
      older.hidden = next === null;
      setAttribute(older, "href", link("traces", { cursor: next }));
      setText(hint, `${params.has("cursor") ? "older ones; " : ""}newest first, by when they were stored${next === null ? "" : `; the first ${PAGE}`}`);
      asked = { key, at: now };
    },
  };
}

const noFilters = () => Object.fromEntries(FILTERS.map((name) => [name, null]));
const whole = (text) => (/^\d{1,15}$/.test(text ?? "") ? Number(text) : null);

/** The API's parameters for the filters; a hit needs both its layer and its expert. */
function wantedOf(params) {
  const [layer, expert] = [whole(params.get("hit_layer")), whole(params.get("hit_expert"))];
  const hit = layer !== null && expert !== null;
  return {
    request_id: params.get("request"),
    dp_rank: whole(params.get("dp_rank")),
    layer: hit ? layer : null,
    expert: hit ? expert : null,
    min_tokens: whole(params.get("min_tokens")) || null,
  };
}

function makeFilters() {
  const field = (label, name, attributes) => {
    const input = /** @type {HTMLInputElement} */ (h("input", { autocomplete: "off", spellcheck: "false", ...attributes, on: { change: () => change({ [name]: input.value.trim() || null, cursor: null }) } }));
    return { name, input, element: h("label", {}, label, input) };
  };
  const number = { type: "number", min: "0", step: "1", inputmode: "numeric" };
  const rank = choice("Tokens of", (value) => change({ dp_rank: value, cursor: null }));
  const fields = [
    field("Request", "request", { type: "search", placeholder: "any of its ids" }),
    field("Took in layer", "hit_layer", number),
    field("expert", "hit_expert", number),
    field("At least", "min_tokens", { ...number, min: "1", "aria-label": "At least so many tokens" }),
  ];
  fields[3].element.append("tokens");
  const [request, ...rest] = fields;
  return {
    element: h("div", { class: "tools", role: "search" }, request.element, rank.element, ...rest.map((item) => item.element)),
    update(params, deployment) {
      rank.set([["", "all DP ranks"], ...deployment.dp_ranks.map((r) => [`${r.dp_rank}`, `DP rank ${r.dp_rank}`])], params.get("dp_rank") ?? "");
      for (const { name, input } of fields) if (document.activeElement !== input) input.value = params.get(name) ?? "";
    },
  };
}

/** Columns behind the request: a head, what a trace has in it, whether that is a number, and whether any trace must have it. */
const COLUMNS = /** @type {const} */ ([
  { head: "DP rank", text: (trace) => `${trace.dp_rank}`, number: true },
  { head: "Tokens computed", text: (trace) => count(trace.tokens), number: true },
  { head: "Prompt", text: (trace) => count(trace.prompt_tokens), number: true },
  { head: "From cache", text: (trace) => count(trace.cached_tokens), number: true },
  { head: "Preempted", text: (trace) => count(trace.preemptions), number: true },
  { head: "Drafts accepted", text: draftsOf, number: true, ifAny: true },
  { head: "Took", text: (trace) => duration(Math.max(0, trace.ended_at - trace.started_at)), number: true },
  { head: "Stored", text: (trace) => instant(trace.stored_at) },
  { head: "LoRA", text: (trace) => trace.lora, ifAny: true },
  { head: "Ended", text: (trace) => trace.finish_reason, ifAny: true },
  { head: "", text: () => "" },
]);

function makeTable() {
  const body = h("tbody");
  const heads = COLUMNS.map(({ head, number }) => h(head ? "th" : "td", { scope: head ? "col" : null, class: number ? "number" : null, text: head }));
  const element = h(
    "table",
    { class: "cards" },
    h("caption", { class: "unseen", text: "Traced requests, newest first" }),
    h("thead", {}, h("tr", {}, h("th", { scope: "col", text: "Request" }), ...heads)),
    body,
  );
  const create = () => h("tr", {}, h("th", { scope: "row" }, h("a")), ...COLUMNS.map(({ head, number }) => h("td", { class: number ? "number" : null, "data-label": head || null })));
  return {
    element,
    /** @param {any[]} traces @param {number|null} layer that is opened with them */
    update(traces, layer) {
      const idle = COLUMNS.map((column) => "ifAny" in column && !traces.some(column.text));
      heads.forEach((cell, i) => (cell.hidden = idle[i]));
      patch(body, traces, create, (tr, trace) => {
        const [head, ...cells] = tr.children;
        setText(head.firstChild, trace.request_id);
        setAttribute(head.firstChild, "href", link("trace", { trace: trace.request_id, layer, at: null, against: null }));
        setAttribute(head, "title", trace.names.join(", "));
        const last = cells.pop();
        cells.forEach((cell, i) => {
          cell.hidden = idle[i];
          setText(cell, COLUMNS[i].text(trace));
        });
        const cut = trace.outcome === "cut_off";
        if (cut !== !!last.firstChild) last.replaceChildren(...(cut ? [tag("warn", "cut off", "Its worker was shut down before vLLM was done with it")] : []));
      });
    },
  };
}

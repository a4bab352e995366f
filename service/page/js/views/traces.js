// Traced requests: search, list, page by page.

import { get } from "../api.js";
import { tag } from "../bars.js";
import { choice, h, panel, patch, scroll, setAttribute, setText } from "../dom.js";
import { count, duration, instant } from "../format.js";
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

function makeTable() {
  const body = h("tbody");
  const heads = ["Request", "DP rank", "Tokens computed", "Prompt", "From cache", "Preempted", "Took", "Stored", ""];
  const element = h(
    "table",
    { class: "cards" },
    h("caption", { class: "unseen", text: "Traced requests, newest first" }),
    h("thead", {}, h("tr", {}, ...heads.map((text, i) => h(text ? "th" : "td", { scope: text ? "col" : null, class: i > 0 && i < 7 ? "number" : null, text })))),
    body,
  );
  const create = () => h("tr", {}, h("th", { scope: "row" }, h("a")), ...heads.slice(1).map((name, i) => h("td", { class: i < 6 ? "number" : null, "data-label": name || null })));
  return {
    element,
    /** @param {any[]} traces @param {number|null} layer that is opened with them */
    update(traces, layer) {
      patch(body, traces, create, (tr, trace) => {
        const [head, ...cells] = tr.children;
        setText(head.firstChild, trace.request_id);
        setAttribute(head.firstChild, "href", link("trace", { trace: trace.request_id, layer, at: null, against: null }));
        setAttribute(head, "title", trace.names.join(", "));
        const texts = [
          `${trace.dp_rank}`, count(trace.tokens), count(trace.prompt_tokens), count(trace.cached_tokens),
          count(trace.preemptions), duration(Math.max(0, trace.ended_at - trace.started_at)), instant(trace.stored_at),
        ];
        texts.forEach((text, i) => setText(cells[i], text));
        const cut = trace.outcome === "cut_off";
        if (cut !== !!cells[7].firstChild) cells[7].replaceChildren(...(cut ? [tag("warn", "cut off", "Its worker was shut down before vLLM was done with it")] : []));
      });
    },
  };
}

// Replicas of one model side by side: which of them is the problem. Prefill instances beside decode instances.

import { get } from "../api.js";
import { tag } from "../bars.js";
import { choice, h, panel, patch, scroll, setAttribute, setText } from "../dom.js";
import { compact, count, measure, percent, plural } from "../format.js";
import { nothing } from "../messages.js";
import { plainTable } from "../plaintable.js";
import { change, link } from "../route.js";
import { imbalanceLevel, tiles } from "../tiles.js";

const EVERY_S = 5; // a pool of hundreds of ranks takes the service a second
const LEVELS = { counting: "good", partial: "warn", disabled: "bad", stale: "bad", conflict: "bad", gone: "warn" };
const HEADS = ["Replica", "role", "state", "tokens/s", "of the mean", "over EP ranks", "worst layer", "over DP ranks", "MaxVio", "hot experts", "straggler cost", "divergence"];
const EXPLAINED =
  "Siblings are the replicas of one role. Each is compared with the others: what they have in common is no replica's own problem. " +
  "Of the mean: tokens per second, 1 is a fair share. Divergence: how far the experts' shares are from those of all siblings together, in bits, in the median layer.";

/** @returns {import("../main.js").View} */
export function create() {
  let asked = { key: "", at: 0 };
  const pool = choice("Pool", (value) => change({ pool: value }));
  const top = tiles();
  const standing = h("ul", { class: "health" });
  const table = plainTable("Replicas", HEADS);
  const reasons = h("ul", { class: "muted" });
  const layers = plainTable("Prefill against decode", ["Layer", "prefill tokens", "decode tokens", "divergence", "by chance", ""]);
  const which = panel("Which replica is the problem?", "", standing);
  const side = panel("Replicas", "a click on one shows it by itself", scroll("Replicas", table.element), h("p", { class: "muted", text: EXPLAINED }), reasons);
  const phases = panel("Prefill against decode", "Jensen-Shannon divergence of the experts' shares, bits, layer by layer", scroll("Prefill against decode", layers.element));
  const parts = h("div", { class: "stack" }, h("div", { class: "tools" }, pool.element), top.element, which.element, side.element, phases.element);
  const links = new Map();
  const none = nothing("");
  const element = h("div", { class: "stack" }, h("h1", { class: "unseen", text: "Pools" }), none, parts);
  return {
    element,
    async refresh({ route, ranks, deployment, query, now, signal }) {
      const { params } = route;
      const known = poolsOf(ranks);
      const chosen = known.find(([name, model]) => name === params.get("pool") && (!params.has("model") || params.get("model") === model))
        ?? known.find(([name, model]) => name === deployment.pool && model === deployment.model) ?? known[0];
      none.hidden = !!chosen;
      parts.hidden = !chosen;
      setText(none, "No deployment names a pool. Set MOESCOPE_POOL in the environment of vLLM to one name for all replicas of a model.");
      if (!chosen) return;
      const key = JSON.stringify([chosen, query, known]);
      if (key === asked.key && Math.abs(now - asked.at) < EVERY_S) return;
      pool.set(known.map(([name, model]) => [name, `${name} (${model})`]), chosen[0]);
      const answer = await get(`v1/pools/${encodeURIComponent(chosen[0])}`, { model: chosen[1], start: query.start, end: query.end }, signal);
      top.update(summary(answer));
      drawStanding(standing, answer.stand_out);
      drawReplicas(table, answer, links);
      patch(reasons, reasonsOf(answer), () => h("li"), (li, text) => setText(li, text));
      reasons.hidden = !reasons.children.length;
      phases.element.hidden = !answer.layers.length;
      drawLayers(layers, answer.layers);
      asked = { key, at: now };
    },
  };
}

/** Name and model of each pool, in the order of names. @returns {[string, string][]} */
function poolsOf(ranks) {
  const found = new Map();
  for (const { pool, model } of ranks.deployments) if (pool) found.set(JSON.stringify([pool, model]), [pool, model]);
  return [...found.values()].sort((a, b) => (a[0] + a[1] < b[0] + b[1] ? -1 : 1));
}

const shown = ({ value }, write) => (value === null ? "–" : write(value));
const bits = (x) => (x === null ? "–" : x.toFixed(4));

function summary(answer) {
  const broken = [...answer.silent, ...answer.partial, ...answer.disabled, ...answer.conflict];
  const rate = (item) => shown(item.tokens_per_second, compact);
  const split = answer.phases ? `${compact(answer.phases.prefill)} of prefill, ${compact(answer.phases.decode)} of decode` : answer.phases_reason;
  return [
    { name: "Replicas", value: count(answer.deployments.length), hint: broken.length ? `not whole: ${broken.join(", ")}` : "all of them count", level: broken.length ? "warn" : "good" },
    { name: "Tokens", value: answer.tokens === null ? `≥ ${compact(answer.known_tokens)}` : compact(answer.tokens), hint: answer.tokens_reason ?? split },
    { name: "Tokens per second", value: rate(answer), hint: answer.tokens_per_second.reason ?? "" },
    ...(answer.roles.length > 1
      ? answer.roles.map((item) => ({ name: `Tokens per second, ${item.role ?? "no role"}`, value: rate(item), hint: plural(item.servers.length, "replica") }))
      : []),
  ];
}

function drawStanding(list, found) {
  const items = found.length ? found.map((item) => ({ level: "warn", name: item.server, text: item.text })) : [{ level: "good", name: "None", text: "No replica is far from its siblings." }];
  patch(list, items, () => h("li", {}, h("span", { class: "tag" }), h("span")), (li, item) => {
    setAttribute(li.firstElementChild, "data-level", item.level);
    setText(li.firstElementChild, item.name);
    setText(li.lastElementChild, item.text);
  });
}

/** @param {Map<string, HTMLElement>} links by replica: they stay, so that a focus stays */
function drawReplicas(table, { model, deployments }, links) {
  table.rows(
    deployments.map((item) => [
      linkTo(item.server, model, links),
      item.role ?? "–",
      tag(LEVELS[item.state], item.state),
      shown(item.tokens_per_second, compact),
      shown(item.tokens_over_mean, (x) => x.toFixed(2)),
      leveled(item.ep_imbalance_ratio),
      item.worst_layer === null ? "–" : `${shown(item.worst_layer_imbalance_ratio, measure)} (${item.worst_layer})`,
      shown(item.dp_imbalance_ratio, measure),
      shown(item.max_vio, (x) => x.toFixed(2)),
      shown(item.hot_experts, count),
      shown(item.straggler_cost, (x) => percent(x, 1)),
      bits(item.divergence.median),
    ]),
  );
}

function linkTo(server, model, links) {
  const a = links.get(server) ?? h("a", { text: server });
  links.set(server, a);
  setAttribute(a, "href", link("overview", { server, model }));
  return a;
}

/** An imbalance ratio in the colour of its level. */
function leveled({ value }) {
  return value === null ? "–" : tag(imbalanceLevel(value), measure(value));
}

function drawLayers(table, layers) {
  table.rows(layers.map((item) => [`${item.layer}`, count(item.prefill_tokens), count(item.decode_tokens), bits(item.divergence), bits(item.noise), item.reason ?? ""]));
}

/** Each reason for a dash once, with the replicas that it is of. */
function reasonsOf({ deployments }) {
  const found = new Map();
  for (const item of deployments) {
    for (const known of [item.tokens_per_second, item.tokens_over_mean, item.ep_imbalance_ratio, item.dp_imbalance_ratio, item.max_vio, item.straggler_cost, item.divergence]) {
      if (known.reason) found.set(known.reason, (found.get(known.reason) ?? new Set()).add(item.server));
    }
  }
  return [...found].map(([reason, servers]) => `${[...servers].join(", ")}: ${reason}`);
}

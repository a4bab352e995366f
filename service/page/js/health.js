// Capture health in plain words, from the answer of /v1/ranks.

import { count, duration, plural, ranges } from "./format.js";

/** @typedef {{level: "good"|"warn"|"bad", word: string, text: string}} Finding */

const RECENT_S = 900;
const WORST = ["bad", "warn", "good"];

/**
 * The state of a DP rank: the worst of its producers'.
 * @returns {{level: "good"|"warn"|"bad", word: string, text: string}}
 */
export function rankState(rank) {
  const of = (state) => rank.producers.find((p) => p.state === state);
  if (isGone(rank)) return { level: "good", word: "gone", text: of("gone").gone_reason };
  const conflict = of("conflict");
  const disabled = of("disabled");
  const stale = of("stale");
  const restarts = recent(rank.producers);
  if (conflict) return { level: "bad", word: "conflict", text: conflict.state_reason };
  if (disabled) return { level: "bad", word: "disabled", text: disabled.state_reason || "capture was turned off" };
  if (stale) return { level: "warn", word: "stale", text: `silent for ${duration(stale.age_seconds)}${lastWord(stale)}` };
  if (restarts.length) return { level: "good", word: "live, restarted", text: `${duration(lastStart(restarts))} ago` };
  return { level: "good", word: "live", text: "" };
}

/** Workers that started again less than a quarter of an hour ago: after that it is no news. */
const recent = (list) => list.filter((p) => p.restarts && p.started_seconds < RECENT_S);
const lastStart = (list) => Math.min(...list.map((p) => p.started_seconds));
const isGone = (rank) => rank.producers.every((p) => p.state === "gone");

/** What a worker said before it fell silent, if it was that it doesn't count. */
const lastWord = (producer) => (producer.state_reason ? `; capture was off: ${producer.state_reason}` : "");

const found = /** @type {WeakMap<any, Finding[]>} */ (new WeakMap()); // by the deployment of an answer

/** Everything worth saying about a deployment, worst first. @returns {Finding[]} */
export function findings(known) {
  if (!found.has(known)) found.set(known, judged(known));
  return /** @type {Finding[]} */ (found.get(known));
}

/** @returns {Finding[]} */
function judged(known) {
  const deployment = { ...known, dp_ranks: known.dp_ranks.filter((rank) => !isGone(rank)) };
  const all = [
    conflict(deployment),
    missing(deployment),
    ...silent(deployment),
    ...disabled(deployment),
    ...absent(deployment),
    ...uncovered(deployment),
    ...unseen(deployment),
    ...conservation(deployment),
    drops(deployment),
    restarts(deployment),
  ].filter((item) => item !== null);
  return all.sort((a, b) => WORST.indexOf(a.level) - WORST.indexOf(b.level));
}

const flat = /** @type {WeakMap<any, any[]>} */ (new WeakMap());

/** All producers of a deployment, with their ranks. */
function producers(d) {
  if (!flat.has(d)) flat.set(d, d.dp_ranks.flatMap((rank) => rank.producers.map((p) => Object.assign(p, { rank: rank.dp_rank }))));
  return /** @type {any[]} */ (flat.get(d));
}

const sorted = (set) => [...set].sort((a, b) => a - b);
const ranksOf = (list) => ranges(sorted(new Set(list.map((p) => p.rank))));

function missing(d) {
  const n = d.missing_dp_ranks.length;
  const others = d.other_parts.length ? ` ${d.partial}.` : "";
  return n
    ? { level: "bad", word: "missing", text: `DP ${n === 1 ? "rank" : "ranks"} ${ranges(d.missing_dp_ranks)} never reported: check that each has MOESCOPE_ENDPOINT set.${others}` }
    : { level: "good", word: "complete", text: `All ${plural(d.dp_size, "DP rank")} have reported.` };
}

function conflict(d) {
  return d.conflict ? { level: "bad", word: "conflict", text: `${d.conflict}. Until then nothing that rests on their counts together is shown.` } : null;
}

function silent(d) {
  const list = producers(d).filter((p) => p.state === "stale");
  if (!list.length) return [{ level: "good", word: "reporting", text: "Every worker reports." }];
  const longest = Math.max(...list.map((p) => p.age_seconds));
  const why = list.find((p) => p.state_reason);
  return [{ level: "warn", word: "stale", text: `DP rank ${ranksOf(list)} fell silent, up to ${duration(longest)} ago: did vLLM stop, or is the network down?${why ? ` Its last word: ${why.state_reason}.` : ""}` }];
}

function disabled(d) {
  const list = producers(d).filter((p) => p.state === "disabled");
  return list.length
    ? [{ level: "bad", word: "disabled", text: `Capture is off on DP rank ${ranksOf(list)}: ${list[0].state_reason}. vLLM serves on, uncounted; restart it once this is mended.` }]
    : [];
}

function absent(d) {
  const reasons = new Map();
  for (const p of producers(d)) {
    for (const { layer, reason } of p.absent) reasons.set(reason, (reasons.get(reason) ?? new Set()).add(layer));
  }
  return [...reasons].map(([reason, layers]) => ({
    level: "bad", word: "absent", text: `${layers.has(null) ? "MoE layers" : `${layers.size === 1 ? "Layer" : "Layers"} ${ranges(sorted(layers))}`} of the model's config ${layers.size === 1 && !layers.has(null) ? "was" : "were"} not found, and nothing here counts them: ${reason}.`,
  }));
}

function uncovered(d) {
  const reasons = new Map();
  for (const p of producers(d)) {
    for (const { layer, reason } of p.uncovered) reasons.set(reason, (reasons.get(reason) ?? new Set()).add(layer));
  }
  return [...reasons].map(([reason, layers]) => ({
    level: "warn", word: "not covered", text: `${layers.size === 1 ? "Layer" : "Layers"} ${ranges(sorted(layers))} can't be seen: ${reason}.`,
  }));
}

function unseen(d) {
  const layers = new Set(d.dp_ranks.flatMap((rank) => rank.unseen_layers));
  return layers.size
    ? [{ level: "bad", word: "unseen", text: `Layers ${ranges(sorted(layers))} should be seen, but their routers reported no token. Their counts are left out.` }]
    : [];
}

const stages = (d) => d.dp_ranks.flatMap((rank) => rank.stages.map((s) => ({ rank: rank.dp_rank, ...s })));
const ROWS = { rows: "tokens", prefill_rows: "tokens of prefill", decode_rows: "tokens of decode" };

/** Rows that are not the tokens, by layer and DP rank. */
const lostRows = (d) => stages(d).flatMap((s) => s.mismatches.map((m) => ({ rank: s.rank, ...m })));

/** What a banner says if rows don't add up to tokens, or layers see none at all; else an empty text. */
export function brokenLaw(d) {
  const lost = lostRows(d);
  const none = d.dp_ranks.flatMap((rank) => rank.unseen_layers.map((layer) => ({ rank: rank.dp_rank, layer, law: "rows", got: 0, expected: rank.tokens })));
  const [first] = [...lost, ...none];
  if (!first) return "";
  const all = [...lost, ...none];
  const places = new Set(all.map((m) => `${m.layer} ${m.rank}`)).size;
  const example = `layer ${first.layer} of DP rank ${first.rank} has ${count(first.got)} of ${count(first.expected)} ${ROWS[first.law]}`;
  const where = places > 1 ? ` in layers ${ranges(sorted(new Set(all.map((m) => m.layer))))} of DP rank ${ranksOf(all)}; first` : "";
  return `Counts don't add up${where}: ${example}. What rests on these counts is wrong or left out.`;
}

/** What a banner says if only a part of the deployment is here; else an empty text. */
export const partText = (deployment) => (deployment.partial ? `This is ${deployment.partial}.` : "");

function conservation(d) {
  const slots = producers(d).flatMap((p) => p.mismatches.map((m) => ({ rank: p.rank, ...m })));
  const unknown = stages(d).filter((s) => s.state === "unknown");
  const found = [...lostRows(d), ...slots];
  const said = unknown.map((s) => ({
    level: "warn", word: "not compared", text: `It is not known whether the counts of DP rank ${s.rank}${d.dp_ranks[0].stages.length > 1 ? `, pipeline stage ${s.pp_rank},` : ""} add up: ${s.reason}.`,
  }));
  if (found.length) {
    const { rank, layer, law, expected, got } = found[0];
    const what = law === "slots" ? "slots (tokens × top-k)" : ROWS[law];
    return [{ level: "bad", word: "mismatch", text: `Counts don't add up in ${plural(found.length, "place")}; first: layer ${layer} of DP rank ${rank} has ${count(got)} of ${count(expected)} ${what}.` }, ...said];
  }
  if (said.length) return said;
  return [{ level: "good", word: "exact", text: "Counts add up: in every layer, rows are tokens, over all workers, and slots are rows × top-k." }];
}

function drops(d) {
  const reasons = new Map();
  for (const p of producers(d)) {
    for (const [reason, n] of Object.entries(p.drops)) if (n) reasons.set(reason, (reasons.get(reason) ?? 0) + n);
  }
  if (!reasons.size) return null;
  const list = [...reasons].map(([reason, n]) => `${count(n)} ${reason}`).join(", ");
  return { level: "good", word: "put off", text: `Frames put off or lost on the way: ${list}. Totals are cumulative, so no count is missing.` };
}

function restarts(d) {
  const list = recent(producers(d));
  return list.length ? { level: "good", word: "restarted", text: `${plural(list.reduce((sum, p) => sum + p.restarts, 0), "restart")} of workers, the last one ${duration(lastStart(list))} ago; totals go on over them.` } : null;
}

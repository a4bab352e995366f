// Capture health in plain words, from the answer of /v1/ranks.

import { count, duration, plural, ranges } from "./format.js";

/** @typedef {{level: "good"|"warn"|"bad", word: string, text: string}} Finding */

const WORST = ["bad", "warn", "good"];

/**
 * The state of a DP rank: the worst of its producers'.
 * @returns {{level: "good"|"warn"|"bad", word: string, text: string}}
 */
export function rankState(rank) {
  const of = (state) => rank.producers.find((p) => p.state === state);
  const disabled = of("disabled");
  const stale = of("stale");
  const restarts = Math.max(...rank.producers.map((p) => p.restarts));
  if (disabled) return { level: "bad", word: "disabled", text: disabled.state_reason || "capture was turned off" };
  if (stale) return { level: "warn", word: "stale", text: `silent for ${duration(stale.age_seconds)}` };
  if (restarts) return { level: "good", word: "live, restarted", text: plural(restarts, "restart") };
  return { level: "good", word: "live", text: "" };
}

/** Everything worth saying about a deployment, worst first. @returns {Finding[]} */
export function findings(deployment) {
  const found = [
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
  return found.sort((a, b) => WORST.indexOf(a.level) - WORST.indexOf(b.level));
}

const producers = (d) => d.dp_ranks.flatMap((rank) => rank.producers.map((p) => ({ rank: rank.dp_rank, ...p })));
const sorted = (set) => [...set].sort((a, b) => a - b);
const ranksOf = (list) => ranges(sorted(new Set(list.map((p) => p.rank))));

function missing(d) {
  const n = d.missing_dp_ranks.length;
  return n
    ? { level: "bad", word: "missing", text: `DP ${n === 1 ? "rank" : "ranks"} ${ranges(d.missing_dp_ranks)} never reported: check that each has MOESCOPE_ENDPOINT set.` }
    : { level: "good", word: "complete", text: `All ${plural(d.dp_size, "DP rank")} have reported.` };
}

function silent(d) {
  const list = producers(d).filter((p) => p.state === "stale");
  if (!list.length) return [{ level: "good", word: "reporting", text: "Every worker reports." }];
  const longest = Math.max(...list.map((p) => p.age_seconds));
  return [{ level: "warn", word: "stale", text: `DP rank ${ranksOf(list)} fell silent, up to ${duration(longest)} ago: did vLLM stop, or is the network down?` }];
}

function disabled(d) {
  const list = producers(d).filter((p) => p.state === "disabled");
  return list.length
    ? [{ level: "bad", word: "disabled", text: `Capture turned itself off on DP rank ${ranksOf(list)}: ${list[0].state_reason}. Restart vLLM once it is mended.` }]
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

function conservation(d) {
  const broken = producers(d).flatMap((p) => p.mismatches.map((m) => ({ rank: p.rank, ...m })));
  if (!broken.length) return [{ level: "good", word: "exact", text: "Counts add up: in every layer, slots are tokens × top-k." }];
  const { rank, layer, expected, got } = broken[0];
  return [{ level: "bad", word: "mismatch", text: `Counts don't add up in ${plural(broken.length, "place")}; first: layer ${layer} of DP rank ${rank} has ${count(got)} where ${count(expected)} were expected.` }];
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
  const n = producers(d).reduce((sum, p) => sum + p.restarts, 0);
  return n ? { level: "good", word: "restarted", text: `${plural(n, "restart")} of workers; totals go on over them.` } : null;
}

// Is another placement of experts worth it, and has the routing moved?

import { get } from "../api.js";
import { barTable, tag } from "../bars.js";
import { choice, h, panel, patch, scroll, setText } from "../dom.js";
import { count, percent, span as times, time } from "../format.js";
import { plainTable } from "../plaintable.js";
import { bounds, change, seconds } from "../route.js";
import { tiles } from "../tiles.js";

const EVERY_S = 15; // an answer takes the service a good part of a second
const DECISIONS = {
  worth_it: ["good", "Worth it"],
  not_worth_it: ["info", "Leave it"],
  ages_too_fast: ["warn", "Ages too fast"],
  too_early: ["warn", "Too early to say"],
  no_sample: ["info", "No sample"],
};
const SPANS = /** @type {[string, string][]} */ ([["1h", "the last hour"], ["6h", "the last 6 hours"], ["1d", "the last day"]]);

/** @returns {import("../main.js").View} */
export function create() {
  let asked = { key: "", at: 0 };
  const span = choice("Judged over", (value) => change({ judge: value }));
  const base = choice("Drift from", (value) => change({ drift_base: value === "previous_hour" ? null : value }));
  const short = h("p", { class: "short", role: "status", hidden: true });
  const words = h("p", { class: "lead" });
  const top = tiles();
  const options = optionTable();
  const facts = h("ul", { class: "facts" });
  const past = rearrangementTable();
  const drift = barTable("Divergence of each layer from the base", ["layer", "", "bits", "by sampling", "moved", "newly dead", "newly hot"], ["by sampling", "moved"]);
  const driftWords = h("p", { class: "muted" });
  const element = h(
    "div",
    { class: "stack" },
    h("h1", { class: "unseen", text: "Advice" }),
    h("div", { class: "tools" }, span.element),
    panel("Placement of experts", "fitted on the first half of the window, judged on the second", short, words, top.element, scroll("Placements", options.element), facts).element,
    panel("Rearrangements by EPLB", "what each one promised, and what it gave", past.element).element,
    h("div", { class: "tools" }, base.element),
    panel("Drift", "of the last five minutes' routing", driftWords, scroll("Drift by layer", drift.element)).element,
  );
  return {
    element,
    async refresh({ route, deployment, now, signal }) {
      const { server, model } = deployment;
      const other = bounds(route.params);
      const judge = route.params.get("judge") ?? (other.past ? "window" : "1h");
      const wanted = route.params.get("drift_base") ?? "previous_hour";
      const key = JSON.stringify([server, model, judge, wanted, route.params.get("from"), route.params.get("to"), judge === "window" && route.params.get("window")]);
      if (key === asked.key && Math.abs(now - asked.at) < EVERY_S) return;
      const window = judge === "window" ? other : { start: `-${judge}`, end: null };
      const query = { server, model, start: window.start ?? 0, end: window.end };
      const baselines = (await get("v1/baselines", { server, model }, signal)).baselines;
      const known = baselines.some((item) => item.name === wanted) ? wanted : "previous_hour";
      const [advice, rearranged, drifted] = await Promise.all([
        get("v1/advice", deployment.ep_size > 1 ? query : { ...query, ranks: 8 }, signal),
        get("v1/advice/rearrangements", { server, model }, signal),
        get("v1/drift", { server, model, baseline: known }, signal),
      ]);
      asked = { key, at: now };
      span.set([...spansWith(judge), ["window", `the other views' window: ${nameOf(other, now)}`]], judge);
      base.set([["previous_hour", "the hour before"], ...baselines.map((item) => /** @type {[string, string]} */ ([item.name, item.name]))], known);
      short.hidden = !advice.short;
      setText(short, advice.short ?? "");
      setText(words, advice.verdict.words);
      top.update(summary(advice));
      options.update(advice);
      patch(facts, advice.verdict.evidence, () => h("li"), setText);
      past.update(rearranged.rearrangements);
      showDrift(drift, driftWords, drifted);
    },
  };
}

/** The spans to choose from; one that an address names is among them. @returns {[string, string][]} */
const spansWith = (judge) => (judge === "window" || SPANS.some(([value]) => value === judge) ? SPANS : [...SPANS, [judge, `the last ${judge}`]]);

/** A window of the other views in words. */
function nameOf({ start, end, past }, now) {
  if (past) return times(seconds(start, now), seconds(end, now));
  return start === null ? "since the start" : `the last ${start.slice(1)}`;
}

function summary(advice) {
  const [level, text] = DECISIONS[advice.verdict.decision];
  const chosen = advice.options.find((item) => isChoice(item, advice.verdict));
  const now = advice.base?.held_out.ratio_of_sums;
  return [
    { name: "Verdict", value: text, level: level === "info" ? null : level, hint: chosen?.name ?? "" },
    { name: advice.base?.strategy === "linear" ? "Imbalance, linear" : "Imbalance now", value: now ? now.toFixed(3) : "–", hint: "ratio of sums, later half" },
    { name: "Imbalance to expect", value: chosen ? chosen.held_out.ratio_of_sums.toFixed(3) : "–", hint: chosen ? `predicted ${chosen.fitted.ratio_of_sums.toFixed(3)}` : "no change is recommended" },
    { name: "Waited in single steps", value: advice.waiting ? percent(advice.waiting.cost, 1) : "–", hint: advice.waiting ? `of the time in experts. By the window's sums it is ${percent(advice.waiting.windowed, 1)} of that time: placement can mend so much at most; the rest comes from hot ranks that change from step to step` : "loads of steps aren't known" },
  ];
}

const isChoice = (item, verdict) => item.strategy === verdict.strategy && item.redundant === verdict.redundant;

function optionTable() {
  const heads = ["placement", "fitted", "later", "saves: predicted", "held out", "worst layer", "copies to move", "copies in vain", ""];
  const { element, rows } = plainTable("Placements and the balance to expect of each", heads);
  return {
    element,
    update(advice) {
      const shown = advice.base?.strategy === "present" ? [advice.base, ...advice.options] : advice.options;
      rows(shown.map((item) => [
        item.name,
        ratio(item.fitted.ratio_of_sums),
        ratio(item.held_out.ratio_of_sums),
        item.strategy === "present" ? "" : percent(item.saving_fitted, 1),
        item.strategy === "present" ? "" : percent(item.saving_held_out, 1),
        item.held_out.worst === null ? "–" : `${item.held_out.worst.toFixed(3)} (layer ${item.held_out.worst_layer})`,
        item.copies_to_move === null ? "" : count(item.copies_to_move),
        item.copies_in_vain === null ? "" : count(item.copies_in_vain),
        isChoice(item, advice.verdict) ? tag("good", "recommended", "saves most for least") : "",
      ]));
    },
  };
}

function rearrangementTable() {
  const { element: table, rows } = plainTable("Rearrangements", ["at", "version", "copies moved", "before", "predicted", "after", "otherwise", "saves: predicted", "achieved", "steps wait: before", "after it", ""]);
  const none = h("p", { class: "nodata", text: "None since the service started: EPLB is off, or has not had its turn yet." });
  const part = scroll("Rearrangements", table);
  return {
    element: h("div", {}, none, part),
    update(found) {
      none.hidden = found.length > 0;
      part.hidden = !found.length;
      rows(found.map((item) => [
        time(item.at),
        `${item.version}`,
        item.copies_moved === null ? "–" : count(item.copies_moved),
        ...(item.reason ? [item.reason, "", "", "", "", ""] : [
          ...[item.before, item.predicted, item.achieved, item.otherwise].map(ratio),
          percent(item.saving_predicted, 1),
          percent(item.saving_achieved, 1),
        ]),
        ...[item.cost_before, item.cost_after].map((cost) => cost === null ? "–" : percent(cost, 1)),
        item.ep_estimate ?? item.weights ? tag("warn", item.ep_estimate ? "estimate" : "other weights", [item.ep_estimate, item.weights].filter(Boolean).join("; ")) : "",
      ]));
    },
  };
}

/** What the service judges, by the thresholds of its verdict; the command line has the same words. */
const FOUND = { drifted: "Drifted", little: "Little drift, though beyond sampling", chance: "No drift beyond sampling" };

function showDrift(table, words, { summary: found, layers, baseline }) {
  const seen = layers.filter((layer) => layer.divergence !== null).sort((a, b) => b.divergence - a.divergence);
  setText(words, found.median === null
    ? `No sample against ${baseline}: ${layers[0]?.reason ?? "no layer was seen"}.`
    : `${FOUND[found.found]}: ${percent(found.moved, 1)} of the slots moved; median ${found.median.toFixed(4)} bits (sampling alone ${found.noise.toFixed(4)}), worst ${found.worst.toFixed(4)} in layer ${found.worst_layer}; ${found.new_dead} experts newly dead, ${found.new_hot} newly hot.`);
  table.update(seen.map((layer) => ({
    head: `${layer.layer}`,
    value: layer.divergence,
    text: layer.divergence.toFixed(4),
    mark: layer.noise,
    cells: [layer.noise.toFixed(4), percent(layer.moved, 1), some(layer.new_dead), some(layer.new_hot)],
  })), Math.max(seen[0]?.divergence ?? 0, seen[0]?.noise ?? 0));
}

const ratio = (value) => (value === null ? "–" : value.toFixed(3));
const some = (experts) => (experts.length > 8 ? `${experts.slice(0, 8).join(" ")} and ${experts.length - 8} more` : experts.join(" "));

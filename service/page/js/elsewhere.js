// Another deployment that is worse off now than the one that is shown: every view says so, and leads there.

import { get } from "./api.js";
import { h, setAttribute, setText } from "./dom.js";
import { plural } from "./format.js";
import { link } from "./route.js";

const EVERY_S = 15; // all verdicts are asked for so often
const GRAVE = ["ok", "info", "warning", "critical"];
const LEAST = GRAVE.indexOf("warning");
const NAMES = { warning: "Warning", critical: "Critical" };

const rank = (verdict) => (verdict ? GRAVE.indexOf(verdict.severity) : -1);
const same = (a, b) => a.server === b.server && a.model === b.model;

/**
 * What is worse than the deployment that is shown, the worst first.
 * @param {any[]} verdicts of /v1/verdict, which has the gravest first
 * @param {{server: string, model: string}} deployment that is shown
 */
export function graver(verdicts, deployment) {
  const mine = rank(verdicts.find((verdict) => same(verdict, deployment)));
  return verdicts.filter((verdict) => !same(verdict, deployment) && rank(verdict) >= LEAST && rank(verdict) > mine);
}

/**
 * @param {HTMLElement} place where it is said
 * @returns {(ranks: any, deployment: any) => void} to be told at each refresh of what reports, and what is shown
 */
export function sayElsewhere(place) {
  const level = h("strong");
  const words = h("span");
  const there = h("a");
  place.append(level, words, " ", there);
  let asked = -Infinity;
  let verdicts = /** @type {any[]} */ ([]);
  let shown = /** @type {any} */ (null);

  const draw = () => {
    const found = shown ? graver(verdicts, shown) : [];
    place.hidden = !found.length;
    if (!found.length) return;
    const [worst, ...others] = found;
    setText(level, `${NAMES[worst.severity]} elsewhere now: `);
    const more = others.length ? ` (${plural(others.length, "other deployment")} worse than this one too, see Models in the Overview)` : "";
    setText(words, `${worst.model} on ${worst.server}: ${worst.words}${more}`);
    setText(there, "Look there");
    const { server, model } = worst;
    setAttribute(there, "href", link("overview", { server, model, window: null, from: null, to: null, phase: null, layer: null, dp_rank: null, dp: null, ep: null }));
    setAttribute(place, "data-level", worst.severity);
  };

  return (ranks, deployment) => {
    shown = deployment;
    draw();
    if (ranks.deployments.length < 2) {
      verdicts = [];
      return;
    }
    if (ranks.now >= asked && ranks.now - asked < EVERY_S) return;
    asked = ranks.now;
    // Beside the view, which doesn't wait for it. Where there is no answer, the view says what is the matter.
    get("v1/verdict").then((answer) => {
      ({ verdicts } = answer);
      draw();
    }, () => {
      asked = -Infinity;
    });
  };
}

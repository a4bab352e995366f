// The phase that a route chooses (prefill, decode, or both), and the line that says why an answer can't tell it.

import { h, setText } from "./dom.js";

/** @type {[string, string][]} */
export const PHASES = [["", "prefill and decode"], ["prefill", "prefill"], ["decode", "decode"]];

/** The phase that a route names; null: both. @param {URLSearchParams} params @returns {string|null} */
export function phaseOf(params, name = "phase") {
  const value = params.get(name);
  return value === "prefill" || value === "decode" ? value : null;
}

/** A line that is shown where an answer can't tell the phases apart. */
export function phaseNote() {
  const element = h("p", { class: "panel nodata", hidden: true, "data-note": "phase" });
  return {
    element,
    /** @param {any} answer of /v1/view or /v1/histogram */
    update(answer) {
      element.hidden = !answer.phase_reason;
      setText(element, answer.phase_reason ? `Numbers of ${answer.phase} alone can't be given: ${answer.phase_reason}.` : "");
    },
  };
}

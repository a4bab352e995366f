// What a view shows when it has no numbers, and what to do about it.

import { h } from "./dom.js";

/** Waiting for the first answer. @param {string} title of the view */
export function loading(title) {
  return h(
    "div",
    { class: "stack", "data-state": "loading" },
    h("h1", { text: `Loading: ${title}` }),
    h("p", { class: "muted", role: "status", text: "Asking the service. A window of hours, or of hundreds of ranks, may take some seconds." }),
    h("div", { class: "skeleton" }),
    h("div", { class: "skeleton" }),
  );
}

/** Nobody has reported yet. */
export function empty() {
  const endpoint = new URL(".", location.href.split("#")[0]).href.replace(/\/$/, "");
  return h(
    "section",
    { class: "message", "data-state": "empty" },
    h("h1", { text: "No model has reported yet" }),
    h("p", { text: "This page fills by itself as soon as a vLLM worker sends its first counts." }),
    h(
      "ol",
      {},
      h("li", { text: "Install moescope in vLLM's environment." }),
      h("li", {}, "Start vLLM with it:"),
    ),
    h("pre", { tabindex: "0" }, h("code", {
      text: `MOESCOPE=1 MOESCOPE_ENDPOINT=${endpoint} \\\nvllm serve MODEL --enable-expert-parallel`,
    })),
    h("p", { class: "muted", text: "Already started? A worker that can't count says so here. If none does, its frames don't arrive: look for lines that begin with moescope in vLLM's log. Without any, moescope isn't installed there, or MOESCOPE isn't 1." }),
  );
}

/**
 * An answer that is a problem.
 * @param {any} error an ApiError, or a fault of this page
 * @param {() => void} retry
 */
export function failure(error, retry) {
  return h(
    "section",
    { class: "message", role: "alert", "data-state": "error" },
    h("h1", { text: error.title ?? "This page failed" }),
    h("p", { text: error.detail ?? `This is a bug of moescope: please report it. ${error}` }),
    h("button", { type: "button", text: "Try again", on: { click: retry } }),
  );
}

/**
 * An address that names no view.
 * @param {string} name
 * @param {[string, string][]} views addresses and titles of those that there are
 */
export function unknown(name, views) {
  return h(
    "section",
    { class: "message", role: "alert", "data-state": "unknown" },
    h("h1", { text: "No such view" }),
    h("p", { text: `This page has no view "${name}". Choose one:` }),
    h("ul", {}, ...views.map(([href, text]) => h("li", {}, h("a", { href, text })))),
  );
}

/** A line in place of a part that has no sample. */
export const nothing = (text) => h("p", { class: "nodata", text });

// Which deployment and which window: the controls that all views share.

import { choice, h, setAttribute } from "./dom.js";
import { PHASES, phaseOf } from "./phase.js";
import { bounds, change, DEFAULT_WINDOW, link, seconds } from "./route.js";

/** @type {[string, string][]} */
const WINDOWS = [
  ["10s", "last 10 seconds"],
  ["1m", "last minute"],
  ["5m", "last 5 minutes"],
  ["15m", "last 15 minutes"],
  ["1h", "last hour"],
  ["all", "since the start"],
  ["past", "past window…"],
];

/** Unix seconds as a datetime-local input has them, in local time. */
function local(unixSeconds) {
  const date = new Date(unixSeconds * 1000);
  return new Date(date.getTime() - date.getTimezoneOffset() * 60000).toISOString().slice(0, 19);
}

/**
 * A date and time that is a parameter of the route, in Unix seconds.
 * @param {string} name of the parameter
 * @param {string} text of the label
 */
export function instant(name, text) {
  const input = /** @type {HTMLInputElement} */ (h("input", {
    type: "datetime-local",
    step: "1",
    on: { change: () => input.value && change({ [name]: Math.floor(new Date(input.value).getTime() / 1000) }) },
  }));
  const element = h("label", { hidden: true }, text, input);
  return {
    element,
    /** @param {URLSearchParams} params @param {boolean} shown */
    update(params, shown) {
      element.hidden = !shown;
      if (shown && document.activeElement !== input) input.value = local(Number(params.get(name)));
    },
  };
}

/** @param {HTMLElement} place */
export function buildControls(place) {
  let latest = 0; // Unix seconds on the service's clock
  const deployment = choice("Model", (value) => {
    const [server, model] = JSON.parse(value);
    change({ server, model, dp_rank: null, layer: null, dp: null, ep: null });
  });
  const window = choice("Window", (value) => {
    const end = Math.floor(latest);
    if (value === "past") change({ window: null, from: end - 300, to: end });
    else change({ window: value, from: null, to: null });
  });
  const phase = choice("Phase", (value) => change({ phase: value }));
  const from = instant("from", "From");
  const to = instant("to", "To");
  const fixed = h("a", { class: "fixed", text: "Link to this window", title: "An address that always shows this view of this model in this very window" });
  place.append(deployment.element, window.element, from.element, to.element, phase.element, fixed);

  return {
    /**
     * Show what a route chooses.
     * @param {any} chosen the deployment of `ranks` that is meant; null if none
     * @param {{phases?: boolean, window?: boolean}} view whether it can show one phase; whether it has a window of its own
     * @param {number} now Unix seconds on the service's clock
     */
    update(route, ranks, chosen, view, now) {
      latest = now;
      const { params } = route;
      const known = ranks.deployments;
      place.hidden = !known.length;
      deployment.set(
        known.map((d) => [JSON.stringify([d.server, d.model]), `${d.model} on ${d.server}`]),
        chosen ? JSON.stringify([chosen.server, chosen.model]) : "",
      );
      const past = params.has("from") && params.has("to");
      const span = params.get("window") ?? DEFAULT_WINDOW;
      const options = WINDOWS.some(([value]) => value === span) ? WINDOWS : [[span, `last ${span}`], ...WINDOWS];
      window.set(/** @type {[string, string][]} */ (options), past ? "past" : span);
      for (const control of [from, to]) control.update(params, past && view.window !== false);
      fixed.hidden = past || view.window === false || !chosen;
      if (!fixed.hidden) {
        const { start } = bounds(params);
        const begin = start === null ? 0 : Math.floor(seconds(start, now));
        setAttribute(fixed, "href", link(route.view, { server: chosen.server, model: chosen.model, window: null, from: begin, to: Math.ceil(now) }));
      }
      window.element.hidden = view.window === false;
      phase.element.hidden = !view.phases;
      phase.set(PHASES, phaseOf(params) ?? "");
    },
  };
}

// What is asked of the service for a route: known before any view is here.

import { phaseOf } from "./phase.js";
import { bounds } from "./route.js";

/**
 * The deployment that a route means: the first live one unless it names one; null if there is none.
 * @param {URLSearchParams} params of the route
 * @param {any} ranks the answer of /v1/ranks
 */
export function chosenOf(params, ranks) {
  const known = ranks.deployments;
  const named = params.has("server") || params.has("model");
  return (named ? known.find((d) => matches(params, d)) : known.find(isLive) ?? known[0]) ?? null;
}

const matches = (params, d) =>
  (!params.has("server") || params.get("server") === d.server) && (!params.has("model") || params.get("model") === d.model);

const isLive = (d) => d.dp_ranks.some((rank) => rank.producers.some((p) => p.state === "counting"));

/**
 * Parameters of the API that name deployment, window and, where a view knows phases, the phase.
 * @param {URLSearchParams} params of the route
 * @param {{server: string, model: string}} deployment
 * @param {boolean} phases whether the view can show one phase
 */
export function queryOf(params, { server, model }, phases) {
  const { start, end } = bounds(params);
  return { server, model, start, end, phase: phases ? phaseOf(params) : null };
}

/** What the Overview asks first: paths and parameters of the window's numbers, and of the verdict. */
export function overviewAsks(/** @type {ReturnType<typeof queryOf>} */ query) {
  const { server, model, start, end } = query;
  return /** @type {[string, Record<string, any>][]} */ ([
    ["v1/view", { ...query, parts: ["ep_ranks", "hot"] }],
    ["v1/verdict", { server, model, start: start ?? 0, end }],
  ]);
}

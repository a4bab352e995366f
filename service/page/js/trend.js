// Which intervals a chart of a window has.

import { span } from "./format.js";
import { bounds, seconds } from "./route.js";

const STEPS = [5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400]; // seconds
const POINTS = 60;
const LEAST_S = 300; // so much is shown at least of what is going on now

/**
 * What to ask /v1/trend for: the window of the other numbers. One that ends now is of five minutes at least.
 * @param {URLSearchParams} params of the route
 * @param {any} view of the same window, which knows where it begins
 * @param {number} now Unix seconds on the service's clock
 */
export function intervals(params, view, now) {
  const { start, end, past } = bounds(params);
  const last = end === null ? now : Math.min(seconds(end, now), now);
  const begun = view.window.used_start.earliest;
  const first = start === null ? begun : Math.max(seconds(start, now), past ? begun - STEPS[0] : 0);
  const length = Math.max(last - first, past ? STEPS[0] : LEAST_S);
  const step = STEPS.find((each) => length / each <= POINTS) ?? STEPS[STEPS.length - 1];
  const points = Math.min(4 * POINTS, Math.max(1, Math.ceil(length / step)));
  return { step, points, end: past ? Math.ceil(last / step) * step : null };
}

/** The time that a trend spans, in words. */
export const spanned = (trend) => (trend.at.length ? span(trend.at[0] - trend.step, trend.at[trend.at.length - 1]) : "");

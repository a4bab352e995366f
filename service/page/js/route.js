// The whole state of the page is in the URL's fragment: #/heatmap?model=m&window=5m&layer=12

/** The window where none is named. */
export const DEFAULT_WINDOW = "1m";
const SECONDS = { s: 1, m: 60, h: 3600, d: 86400 };

/** @typedef {{view: string, params: URLSearchParams}} Route */

/** @returns {Route} */
export function read() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { view: path || "overview", params: new URLSearchParams(query) };
}

/** The link to a view with the present parameters, changed by `changes` (null takes one away). */
export function link(view, changes = {}) {
  const params = new URLSearchParams(read().params);
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === "") params.delete(name);
    else params.set(name, String(value));
  }
  const query = params.toString();
  return `#/${view}${query ? `?${query}` : ""}`;
}

/** Go to a view; `replace` leaves no entry in the history. */
export function go(view, changes = {}, replace = false) {
  const target = link(view, changes);
  if (replace) {
    history.replaceState(null, "", target);
    window.dispatchEvent(new HashChangeEvent("hashchange"));
  } else location.hash = target;
}

/** Change parameters of the present view. */
export const change = (changes) => go(read().view, changes, true);

/**
 * The API's bounds of the window that a route names: `window` (60s, 5m; "all") or `from` and `to` (Unix seconds).
 * @param {URLSearchParams} params
 * @returns {{start: string|null, end: string|null, past: boolean}}
 */
export function bounds(params) {
  if (params.has("from") && params.has("to")) return { start: params.get("from"), end: params.get("to"), past: true };
  const window = params.get("window") ?? DEFAULT_WINDOW;
  return { start: window === "all" ? null : `-${window}`, end: null, past: false };
}

/** A bound of {@link bounds} as Unix seconds. @param {string} bound @param {number} now */
export function seconds(bound, now) {
  const [, n, unit] = /^-(\d+(?:\.\d+)?)([smhd])$/.exec(bound) ?? [];
  return n ? now - Number(n) * SECONDS[unit] : Number(bound);
}

/** The window just before the one of {@link bounds}, of the same length; null where it has no begin. */
export function previous(params) {
  const { start, end, past } = bounds(params);
  if (start === null) return null;
  if (past) return { start: String(Math.max(0, 2 * Number(start) - Number(end))), end: start };
  const [, n, unit] = /^-(\d+(?:\.\d+)?)([smhd])$/.exec(start) ?? [];
  return n ? { start: `-${2 * Number(n) * SECONDS[unit]}s`, end: start } : null;
}

// Asking the service. URLs are relative to the page, so a proxy's path prefix needs no setting.

/** An answer that is a problem (RFC 9457), or no answer at all (`status` 0). */
export class ApiError extends Error {
  constructor(status, title, detail, type = "") {
    super(`${title}: ${detail}`);
    this.status = status;
    this.title = title;
    this.detail = detail;
    this.type = type;
  }
}

/** @type {WeakMap<AbortSignal, number>} of answers to requests with a signal: the latest begin of a window that is later than asked */
const cutAt = new WeakMap();

/**
 * Since when the windows of answers are known, if that is later than asked: Unix seconds, else undefined.
 * @param {AbortSignal} signal of the requests
 */
export const windowCutAt = (signal) => cutAt.get(signal);

const AHEAD_MS = 5000; // what was asked ahead, and is taken later than that, is asked again

/** @type {Map<string, {at: number, found: Promise<Found>}>} by address; taken once */
const ahead = new Map();
let begun = false; // with asking what is shown: nothing is ahead of that any more

/** @typedef {{status: number, ok: boolean, body: any}} Found an answer; `body` is null where it is no JSON, status 0: there was none */

/**
 * Ask what {@link get} will be asked for soon: it takes this answer then.
 * @param {string} path
 * @param {Record<string, any>} [params] the same as of that call
 * @returns {Promise<any>} the body; null where there is no good one, or it is late for that
 */
export async function askAhead(path, params = {}) {
  if (begun) return null;
  const url = address(path, params);
  const found = fetched(url);
  ahead.set(url, { at: performance.now(), found });
  const { ok, body } = await found;
  return ok ? body : null;
}

function askedAhead(url) {
  const known = ahead.get(url);
  ahead.delete(url);
  return known && performance.now() - known.at < AHEAD_MS ? known.found : null;
}

function address(path, params) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    for (const item of Array.isArray(value) ? value : [value]) {
      if (item !== null && item !== undefined && item !== "") query.append(name, String(item));
    }
  }
  return query.size ? `${path}?${query}` : path;
}

/** @param {string} url @param {AbortSignal} [signal] @returns {Promise<Found>} */
async function fetched(url, signal) {
  let response;
  try {
    response = await fetch(url, { signal, credentials: "same-origin", headers: { Accept: "application/json" } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return { status: 0, ok: false, body: null };
  }
  return { status: response.status, ok: response.ok, body: await response.json().catch(() => null) };
}

/**
 * GET a JSON answer.
 * @param {string} path relative, such as "v1/view"
 * @param {Record<string, any>} [params] null and "" are left out, lists are repeated
 * @param {AbortSignal} [signal]
 */
export async function get(path, params = {}, signal) {
  begun = true;
  const url = address(path, params);
  const { status, ok, body } = await (askedAhead(url) ?? fetched(url, signal));
  signal?.throwIfAborted();
  if (status === 0) throw new ApiError(0, "The service does not answer", "Check that moescope serve runs and that this address reaches it.");
  if (ok && body) {
    if (signal && body.window?.truncated) cutAt.set(signal, Math.max(body.window.used_start?.latest ?? 0, cutAt.get(signal) ?? 0));
    return body;
  }
  if (status === 401 || status === 403)
    throw new ApiError(status, "Not allowed", "Sign in where the service is published, then load this page again.");
  throw new ApiError(status, body?.title ?? `The service answered ${status}`, body?.detail ?? "Look into the log of moescope serve.", body?.type);
}

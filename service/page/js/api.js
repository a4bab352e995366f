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

/**
 * GET a JSON answer.
 * @param {string} path relative, such as "v1/view"
 * @param {Record<string, any>} [params] null and "" are left out, lists are repeated
 * @param {AbortSignal} [signal]
 */
export async function get(path, params = {}, signal) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    for (const item of Array.isArray(value) ? value : [value]) {
      if (item !== null && item !== undefined && item !== "") query.append(name, String(item));
    }
  }
  const url = query.size ? `${path}?${query}` : path;
  let response;
  try {
    response = await fetch(url, { signal, credentials: "same-origin", headers: { Accept: "application/json" } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The service does not answer", "Check that moescope serve runs and that this address reaches it.");
  }
  const body = await response.json().catch(() => null);
  if (response.ok && body) {
    if (signal && body.window?.truncated) cutAt.set(signal, Math.max(body.window.used_start?.latest ?? 0, cutAt.get(signal) ?? 0));
    return body;
  }
  if (response.status === 401 || response.status === 403)
    throw new ApiError(response.status, "Not allowed", "Sign in where the service is published, then load this page again.");
  throw new ApiError(response.status, body?.title ?? `The service answered ${response.status}`, body?.detail ?? "Look into the log of moescope serve.", body?.type);
}

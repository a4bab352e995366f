// The shell: header, controls, live updates, and one view at a time.

import { get, ApiError, windowCutAt } from "./api.js";
import { chosenOf, queryOf } from "./asked.js";
import { buildControls } from "./controls.js";
import { sayElsewhere } from "./elsewhere.js";
import { h, setAttribute, setText } from "./dom.js";
import { setServiceTime, time, timeZone } from "./format.js";
import { brokenLaw, partText } from "./health.js";
import { bindHelp } from "./help.js";
import { follow } from "./live.js";
import { empty, failure, loading, unknown } from "./messages.js";
import { bounds, DEFAULT_WINDOW, link, read } from "./route.js";
import { showSilence, silentFor } from "./silence.js";
import { signIn } from "./signin.js";
import { bindToggle } from "./theme.js";
import { VIEWS } from "./views/index.js";

/**
 * @typedef {object} Context what a view is given at each refresh
 * @property {import("./route.js").Route} route
 * @property {any} ranks the answer of /v1/ranks
 * @property {any} deployment the entry of it that is shown
 * @property {Record<string, any>} query parameters of the API that name deployment and window
 * @property {number} now Unix seconds on the service's clock
 * @property {AbortSignal} signal
 * @property {() => void} show shows the view, which need not have all of its numbers yet
 *
 * @typedef {object} View
 * @property {HTMLElement} element
 * @property {(context: Context) => Promise<void>} refresh
 * @property {() => void} [destroy]
 */

const RANKS_MS = 1900; // how old what is known of ranks may be

const main = /** @type {HTMLElement} */ (document.getElementById("main"));
const status = /** @type {HTMLElement} */ (document.getElementById("status"));
const notice = /** @type {HTMLElement} */ (document.getElementById("notice"));
const broken = /** @type {HTMLElement} */ (document.getElementById("broken"));
const part = /** @type {HTMLElement} */ (document.getElementById("part"));
const short = /** @type {HTMLElement} */ (document.getElementById("short"));
const nav = /** @type {HTMLElement} */ (document.getElementById("views"));
const controls = buildControls(/** @type {HTMLElement} */ (document.getElementById("controls")));

setText(/** @type {HTMLElement} */ (document.getElementById("zone")), `Times are those of this browser's time zone, ${timeZone()}.`);

const elsewhere = sayElsewhere(/** @type {HTMLElement} */ (document.getElementById("elsewhere")));

let shown = { name: "", view: /** @type {View|null} */ (null), ready: false };
let connection = "connecting";
let now = 0; // until the first answer: the service's clock counts, not the browser's
let freshAt = 0;
let running = /** @type {AbortController|null} */ (null);
let again = false;
let headOf = ""; // the address that the controls show
let reported = { ranks: /** @type {any} */ (null), at: -Infinity };
let silence = /** @type {any} */ (null);

for (const [name, { title, inMenu }] of Object.entries(VIEWS)) {
  if (inMenu) nav.append(h("a", { href: link(name), "data-view": name, text: title }));
}

function showView(name) {
  shown.view?.destroy?.();
  shown = { name, view: null, ready: false };
  main.replaceChildren(loading(VIEWS[name].title));
  showSilence(null, VIEWS[name].title);
}

/** Put something in the place of the view; the next good answer brings the view back. */
function showInstead(element) {
  main.replaceChildren(element);
  shown.ready = false;
}

function showStatus(past) {
  const said = past ? "" : silentFor(silence);
  const state = connection !== "live" ? connection : past ? "paused" : said ? "silent" : "live";
  setAttribute(status, "data-state", state);
  setText(status, { live: "Live", paused: "Past window", lost: "Disconnected", connecting: "Connecting", silent: said }[state] ?? "");
  notice.hidden = connection !== "lost" || !freshAt;
  if (!notice.hidden) {
    notice.replaceChildren(
      h("strong", { text: "Disconnected. " }),
      `The numbers below are of ${time(freshAt)}. Trying again by itself; if it lasts, check that moescope serve runs.`,
    );
  }
}

/** Ask and draw once. Calls while that is under way are answered by one more refresh after it. */
async function refresh() {
  if (running) {
    again = true;
    return;
  }
  running = new AbortController();
  const { signal } = running;
  try {
    await draw(signal);
  } catch (error) {
    if (!signal.aborted) report(error);
  } finally {
    running = null;
    if (again) {
      again = false;
      refresh();
    }
  }
}

async function draw(signal) {
  const route = read();
  const name = route.view;
  if (!Object.hasOwn(VIEWS, name)) {
    showUnknown(name);
    return;
  }
  if (name !== shown.name) showView(name);
  const [ranks, module] = await Promise.all([reporting(signal), loaded(name)]);
  signal.throwIfAborted();
  shown.view ??= module.create();
  setServiceTime(now);
  const deployment = chosenOf(route.params, ranks);
  if (deployment) settle(route, deployment);
  const { hash } = location;
  const head = () => {
    controls.update(route, ranks, deployment, VIEWS[name], now);
    const { past } = bounds(route.params);
    silence = deployment?.silence ?? null;
    showSilence(past ? null : silence, VIEWS[name].title);
    showStatus(past);
    showNav(name);
    showBroken(deployment);
    elsewhere(ranks, deployment);
    headOf = hash;
  };
  if (!deployment || !shown.ready || headOf !== hash) head();
  if (!deployment) {
    freshAt = now;
    showInstead(ranks.deployments.length ? failure(new ApiError(404, "No such deployment", "Choose one above."), refresh) : empty());
    return;
  }
  const query = queryOf(route.params, deployment, VIEWS[name].phases ?? false);
  await shown.view.refresh({ route, ranks, deployment, query, now, signal, show: showReady });
  freshAt = now;
  head(); // with the view's numbers, in one frame
  showCut(windowCutAt(signal));
  showReady();
}

/** The answer of /v1/ranks. The one of the last update serves the next one too: of hundreds of ranks it is large. */
async function reporting(signal) {
  if (!shown.ready || headOf !== location.hash || performance.now() - reported.at >= RANKS_MS) {
    const ranks = await get("v1/ranks", {}, signal);
    reported = { ranks, at: performance.now() };
    ({ now } = ranks);
  }
  return reported.ranks;
}

/** The module of a view, which is fetched when it is first shown; one that could not be is fetched again. */
function loaded(name) {
  return VIEWS[name].load().catch((error) => {
    console.error(error);
    throw new ApiError(0, "A part of this page did not load", "Trying again by itself. If it lasts, check that moescope serve runs, then load this page again.");
  });
}

/** Show the view in place of what stood there. */
function showReady() {
  if (shown.ready) return;
  main.replaceChildren(shown.view.element);
  shown.ready = true;
}

/** The address always names deployment and window, so that it shows the same when others report too. */
function settle(route, { server, model }) {
  const { params } = route;
  const missing = {};
  if (!params.has("server") || !params.has("model")) Object.assign(missing, { server, model });
  if (!params.has("window") && !bounds(params).past) missing.window = DEFAULT_WINDOW;
  if (!Object.keys(missing).length) return;
  history.replaceState(null, "", link(route.view, missing));
  for (const [key, value] of Object.entries(missing)) params.set(key, value);
}

/** An address that names no view. */
function showUnknown(name) {
  shown.view?.destroy?.();
  shown = { name: "", view: null, ready: false };
  silence = null;
  showSilence(null, "No such view");
  for (const a of nav.children) setAttribute(a, "aria-current", null);
  main.replaceChildren(unknown(name, Object.entries(VIEWS).filter(([, view]) => view.inMenu).map(([view, { title }]) => [link(view), title])));
}

/** Counts that don't add up, and ranks that are not here, are said above every view: what it shows rests on them. */
function showBroken(deployment) {
  for (const [element, said] of /** @type {const} */ ([[broken, brokenLaw], [part, partText]])) {
    const text = deployment ? said(deployment) : "";
    element.hidden = !text;
    setText(element, text);
  }
}

/** A window of which the begin is forgotten is shorter than its name. */
function showCut(since) {
  short.hidden = since === undefined;
  if (since !== undefined) setText(short, `Only since ${time(since)}: nothing older is remembered, so this window is shorter than asked.`);
}

function showNav(name) {
  for (const a of nav.children) {
    setAttribute(a, "href", link(a.getAttribute("data-view"), { layer: null }));
    setAttribute(a, "aria-current", (VIEWS[name].menu ?? name) === a.getAttribute("data-view") ? "page" : null);
  }
}

function report(error) {
  const lost = error instanceof ApiError && error.status === 0;
  if (lost && shown.ready) return; // the notice tells; the last numbers stay
  if (error instanceof ApiError && error.status === 401) {
    if (!main.querySelector("[data-state=signin]")) showInstead(signIn(() => location.reload()));
    return;
  }
  if (!(error instanceof ApiError)) console.error(error);
  showInstead(failure(error, refresh));
}

window.addEventListener("hashchange", () => {
  running?.abort();
  const { view } = read();
  if (view !== shown.name && Object.hasOwn(VIEWS, view)) showView(view);
  if (shown.name) showNav(shown.name);
  refresh();
});
document.getElementById("skip")?.addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
const theme = /** @type {HTMLElement} */ (document.getElementById("theme"));
bindHelp(/** @type {HTMLElement} */ (document.getElementById("help")), {
  views: () => nav.querySelectorAll("a"),
  window: () => document.querySelector("#controls select[aria-label=Window]"),
  theme,
});
bindToggle(/** @type {HTMLButtonElement} */ (document.getElementById("theme")));
follow(
  "v1/live",
  (tick) => {
    ({ now } = tick);
    if (!document.hidden) refresh();
  },
  (state) => {
    connection = state;
    showStatus(bounds(read().params).past);
  },
);
document.addEventListener("visibilitychange", () => !document.hidden && refresh());
refresh();

// A deployment of which nothing comes any more: header, title, icon and colours say so, in every view.

import { h, setAttribute, setText } from "./dom.js";
import { duration } from "./format.js";

const main = /** @type {HTMLElement} */ (document.getElementById("main"));
const notice = /** @type {HTMLElement} */ (document.getElementById("silent"));
const icon = /** @type {HTMLLinkElement} */ (document.querySelector("link[rel=icon]"));
const ICON = icon.getAttribute("href");

/** What the header says in place of "Live"; empty: somebody reports. @param {any} silence of /v1/ranks */
export const silentFor = (silence) => (silence ? `${silence.ended ? "Shut down" : "Silent"} for ${duration(silence.seconds)}` : "");

/**
 * Show a silence everywhere but in the header, or none.
 * @param {any} silence of the deployment in /v1/ranks, or null
 * @param {string} title of the view
 */
export function showSilence(silence, title) {
  const said = silentFor(silence);
  document.title = `${said ? `${said} · ` : ""}${title} · moescope`;
  setAttribute(icon, "href", silence && !silence.ended ? ICON?.replace("icon.svg", "icon-silent.svg") : ICON);
  setAttribute(main, "data-silent", said ? "" : null);
  notice.hidden = !silence;
  if (!silence) return;
  if (!notice.firstChild) notice.append(h("strong"), h("span"));
  setText(notice.firstChild, `${said}. `);
  setText(notice.lastChild, `${silence.words} The numbers below are old.`);
}

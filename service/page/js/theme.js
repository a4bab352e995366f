// The theme: light, dark, or the system's. Charts ask here for colours.

const NAMES = { auto: "Theme: auto", light: "Theme: light", dark: "Theme: dark" };
const ORDER = ["auto", "light", "dark"];
const KEY = "moescope-theme";
const listeners = new Set();

function stored() {
  try {
    return localStorage.getItem(KEY) ?? "auto";
  } catch {
    return "auto"; // storage may be forbidden
  }
}

function apply(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  for (const f of listeners) f();
}

/** Whether dark is shown now. */
export function dark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

/** A colour of theme.css, as the browser computes it. */
export function colour(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

/** Call `f` when the colours change. @returns {() => void} stop */
export function onTheme(f) {
  listeners.add(f);
  return () => listeners.delete(f);
}

/** Make a button switch the theme. @param {HTMLElement} button */
export function bindToggle(button) {
  let name = ORDER.includes(stored()) ? stored() : "auto";
  const show = () => {
    button.textContent = NAMES[name];
    apply(name);
  };
  button.addEventListener("click", () => {
    name = ORDER[(ORDER.indexOf(name) + 1) % ORDER.length];
    try {
      localStorage.setItem(KEY, name);
    } catch { /* it holds until the page is closed */ }
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => apply(name));
  show();
}

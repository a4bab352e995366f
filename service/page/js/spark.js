// A line without axes, of the size of a word.

import { setAttribute } from "./dom.js";

const NS = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [96, 18];

/** An empty line, with one for a fair share behind it. */
export function spark() {
  const svg = document.createElementNS(NS, "svg");
  for (const [name, value] of Object.entries({ class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" })) svg.setAttribute(name, value);
  svg.append(document.createElementNS(NS, "path"), document.createElementNS(NS, "path"));
  return svg;
}

/**
 * Draw values; gaps where there is none.
 * @param {any} svg of {@link spark}
 * @param {(number|null)[]} values
 * @param {number} most the value at the top; 0 is at the bottom
 * @param {string} label for screen readers
 */
export function drawSpark(svg, values, most, label) {
  const y = (value) => (HEIGHT - 1 - ((HEIGHT - 2) * Math.min(value, most)) / most).toFixed(1);
  const step = WIDTH / Math.max(1, values.length - 1);
  let pen = "M";
  const line = values.map((value, i) => {
    if (value === null) {
      pen = "M";
      return "";
    }
    const part = `${pen}${(i * step).toFixed(1)} ${y(value)}${pen === "M" ? "h.1" : ""}`;
    pen = "L";
    return part;
  });
  setAttribute(svg.firstChild, "d", `M0 ${y(1)}H${WIDTH}`);
  setAttribute(svg.lastChild, "d", line.join(""));
  setAttribute(svg, "aria-label", label);
}

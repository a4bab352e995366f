// Marks of whole columns of a grid, which need no colour: hatching is "missing", a bar above is "more than once".

import { h } from "./dom.js";
import { colour, onTheme } from "./theme.js";

export const PRESENT = 0;
export const MISSING = 1;
export const AGAIN = 2;

const HATCH = 6; // pixels between strokes

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Uint8Array} marks
 * @param {{left: number, top: number, width: number, height: number}} place of the first column
 * @param {{ink: string, muted: string, surface: string}} colours
 */
export function drawColumnMarks(context, marks, { left, top, width, height }, colours) {
  for (let from = 0; from < marks.length; ) {
    let to = from + 1;
    while (to < marks.length && marks[to] === marks[from]) to++;
    const x = left + from * width;
    if (marks[from] === MISSING) hatch(context, x, top, (to - from) * width, height, colours);
    if (marks[from] === AGAIN) {
      context.fillStyle = colours.ink;
      context.fillRect(x, top - 4, Math.max(1, (to - from) * width), 3);
    }
    from = to;
  }
}

function hatch(context, x, y, width, height, colours) {
  context.save();
  context.beginPath();
  context.rect(x, y, width, height);
  context.clip();
  context.fillStyle = colours.surface;
  context.fillRect(x, y, width, height);
  context.strokeStyle = colours.muted;
  context.globalAlpha = 0.6;
  context.lineWidth = 1;
  context.beginPath();
  for (let at = -height; at < width; at += HATCH) {
    context.moveTo(x + at, y + height);
    context.lineTo(x + at + height, y);
  }
  context.stroke();
  context.restore();
}

/** A mark and what it means, for a legend; call `destroy` when it goes. */
export function markKey(mark, text) {
  const canvas = /** @type {HTMLCanvasElement} */ (h("canvas", { "aria-hidden": "true", width: "28", height: "28" }));
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const draw = () => {
    const colours = { ink: colour("ink"), muted: colour("muted"), surface: colour("surface") };
    context.setTransform(2, 0, 0, 2, 0, 0);
    context.clearRect(0, 0, 14, 14);
    if (mark === AGAIN) {
      context.fillStyle = colour("bar");
      context.fillRect(1, 5, 12, 8);
    }
    drawColumnMarks(context, Uint8Array.of(mark), { left: 1, top: mark === AGAIN ? 5 : 1, width: 12, height: 12 }, colours);
  };
  requestAnimationFrame(draw);
  return { element: h("span", { class: "mark" }, canvas, text), destroy: onTheme(draw) };
}

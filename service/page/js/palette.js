// Colours of heatmaps for colour-blind people too: lightness orders them, and the hues are blue and orange.

import { dark } from "./theme.js";

/** 256 colours as 0xAABBGGRR, what a little-endian ImageData takes. @typedef {Uint32Array} Palette */

// Far below, fair, far above. On a dark ground cold ones recede into it, and hot ones shine.
const DIVERGING = {
  light: ["#123f73", "#2f72b3", "#8bb8de", "#f1f3f5", "#f3b375", "#cf6a14", "#7a3503"],
  dark: ["#131d2b", "#1a3450", "#27486a", "#46525f", "#a8611f", "#ee9238", "#ffe9c4"],
};
// Nothing, much.
const SEQUENTIAL = {
  light: ["#f4f6f8", "#c9dcec", "#7fb0d6", "#3279b5", "#12487f", "#081f3f"],
  dark: ["#1a2027", "#1f3f5c", "#2b6ea0", "#48a5c4", "#9bd6b0", "#fff2a8"],
};

const parse = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

/** @param {string[]} stops evenly spaced @returns {Palette} */
function blend(stops) {
  const colours = stops.map(parse);
  return Uint32Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (colours.length - 1);
    const left = Math.min(Math.floor(at), colours.length - 2);
    const [r, g, b] = [0, 1, 2].map((c) => Math.round(colours[left][c] + (at - left) * (colours[left + 1][c] - colours[left][c])));
    return (0xff000000 | (b << 16) | (g << 8) | r) >>> 0;
  });
}

const cache = new Map();

/** The palette of a kind in the present theme. @param {"diverging"|"sequential"} kind @returns {Palette} */
export function palette(kind) {
  const theme = dark() ? "dark" : "light";
  const key = kind + theme;
  if (!cache.has(key)) cache.set(key, blend((kind === "diverging" ? DIVERGING : SEQUENTIAL)[theme]));
  return cache.get(key);
}

/** Draw a palette as a strip. @param {HTMLCanvasElement} canvas */
export function drawScale(canvas, colours) {
  canvas.width = 256;
  canvas.height = 1;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = context.createImageData(256, 1);
  new Uint32Array(image.data.buffer).set(colours);
  context.putImageData(image, 0, 0);
}

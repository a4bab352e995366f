// A grid of coloured cells on a canvas, with hover, click and arrow keys, whatever the cells mean.

import { drawColumnMarks } from "./columnmarks.js";
import { h } from "./dom.js";
import { colour, onTheme } from "./theme.js";

export const NONE = 0;
export const DEAD = 1;
export const HOT = 2;

/**
 * @typedef {object} GridData
 * @property {string[]} rows their labels
 * @property {number} columns how many
 * @property {Float32Array} values rows x columns, 0 to 1; NaN is no sample
 * @property {() => Uint32Array} palette
 * @property {Uint8Array} [marks] NONE, DEAD or HOT, rows x columns
 * @property {{at: number, text: string}[]} ticks labels under a column's position; positions may be halves
 * @property {number[]} [breaks] columns before which a line is drawn
 * @property {Uint8Array} [columnMarks] of columnmarks.js, one a column
 */

const TOP = 20;
const LEFT = 40;
const LEAST_ROW = 8;
const MOST_ROW = 26;
const GOAL_HEIGHT = 620;

/**
 * @param {string} label for screen readers
 * @param {{point: (row: number, column: number) => void, leave: () => void, open?: (row: number, column: number) => void}} on
 */
export function grid(label, on) {
  const canvas = /** @type {HTMLCanvasElement} */ (h("canvas", { class: "grid", tabindex: "0", role: "application", "aria-label": `${label}. Arrow keys move, Enter opens.` }));
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: true }));
  const cells = document.createElement("canvas");
  let data = /** @type {GridData|null} */ (null);
  let at = /** @type {{row: number, column: number}|null} */ (null);
  let colours = { ink: "", muted: "", surface: "", sunken: "" };
  let asked = 0;

  const readColours = () => {
    colours = { ink: colour("ink"), muted: colour("muted"), surface: colour("surface"), sunken: colour("sunken") };
  };
  const rowHeight = () => (data ? Math.max(LEAST_ROW, Math.min(MOST_ROW, Math.floor(GOAL_HEIGHT / data.rows.length))) : LEAST_ROW);
  const columnWidth = () => (data ? (canvas.clientWidth - LEFT) / data.columns : 1);

  /** The cells, one pixel each. */
  function paint() {
    if (!data) return;
    const { rows, columns, values } = data;
    if (!rows.length || !columns) return;
    cells.width = columns;
    cells.height = rows.length;
    const pixels = /** @type {CanvasRenderingContext2D} */ (cells.getContext("2d"));
    const image = pixels.createImageData(columns, rows.length);
    const out = new Uint32Array(image.data.buffer);
    const map = data.palette();
    for (let i = 0; i < values.length; i++) {
      const value = values[i];
      out[i] = value === value ? map[Math.max(0, Math.min(255, Math.round(value * 255)))] : 0;
    }
    pixels.putImageData(image, 0, 0);
  }

  function draw() {
    asked = 0;
    if (!data || !canvas.clientWidth) return;
    const scale = window.devicePixelRatio || 1;
    const height = TOP + data.rows.length * rowHeight();
    const size = [Math.round(canvas.clientWidth * scale), Math.round(height * scale)];
    if (canvas.width !== size[0] || canvas.height !== size[1]) {
      canvas.style.height = `${height}px`;
      [canvas.width, canvas.height] = size;
    }
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, canvas.clientWidth, height);
    if (!data.rows.length || !data.columns) return;
    const width = canvas.clientWidth - LEFT;
    context.fillStyle = colours.sunken;
    context.fillRect(LEFT, TOP, width, height - TOP);
    context.imageSmoothingEnabled = false;
    context.drawImage(cells, LEFT, TOP, width, height - TOP);
    drawLines(width, height);
    drawMarks();
    if (data.columnMarks) drawColumnMarks(context, data.columnMarks, { left: LEFT, top: TOP, width: columnWidth(), height: height - TOP }, colours);
    drawLabels();
    drawCursor();
  }

  function drawLines(width, height) {
    const cw = columnWidth(), rh = rowHeight();
    context.fillStyle = colours.surface;
    if (rh >= 6) for (let r = 1; r < data.rows.length; r++) context.fillRect(LEFT, TOP + r * rh - 0.5, width, rh >= 14 ? 1 : 0.5);
    if (cw >= 10) for (let c = 1; c < data.columns; c++) context.fillRect(LEFT + c * cw - 0.5, TOP, 1, height - TOP);
    context.fillStyle = colours.muted;
    for (const column of data.breaks ?? []) context.fillRect(LEFT + column * cw - 0.5, TOP - 4, 1, height - TOP + 4);
  }

  function drawMarks() {
    if (!data.marks) return;
    const cw = columnWidth(), rh = rowHeight();
    for (let i = 0; i < data.marks.length; i++) {
      if (data.marks[i] === NONE) continue;
      const x = LEFT + (i % data.columns) * cw, y = TOP + Math.floor(i / data.columns) * rh;
      drawMark(context, data.marks[i], x, y, cw, rh, colours);
    }
  }

  function drawLabels() {
    const cw = columnWidth(), rh = rowHeight();
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.textAlign = "right";
    const every = Math.ceil(12 / rh);
    data.rows.forEach((text, r) => {
      if (r % every && at?.row !== r) return;
      context.fillStyle = at?.row === r ? colours.ink : colours.muted;
      context.fillText(text, LEFT - 7, TOP + (r + 0.5) * rh);
    });
    context.textAlign = "center";
    context.fillStyle = colours.muted;
    const widest = Math.max(...data.ticks.map((tick) => context.measureText(tick.text).width));
    const stride = Math.ceil((widest + 8) / (((data.columns * cw) / data.ticks.length) || 1));
    data.ticks.forEach((tick, i) => {
      const x = LEFT + (tick.at + 0.5) * cw;
      if (i % stride === 0) context.fillText(tick.text, Math.min(x, canvas.clientWidth - widest / 2), TOP / 2 - 1);
    });
  }

  function drawCursor() {
    if (!at) return;
    const cw = columnWidth(), rh = rowHeight();
    context.lineWidth = 3;
    context.strokeStyle = colours.surface;
    const box = /** @type {const} */ ([LEFT + at.column * cw - 1, TOP + at.row * rh - 1, Math.max(cw, 3) + 2, rh + 2]);
    context.strokeRect(...box);
    context.lineWidth = 1.5;
    context.strokeStyle = colours.ink;
    context.strokeRect(...box);
  }

  const ask = () => {
    asked ||= requestAnimationFrame(draw);
  };
  function move(row, column) {
    if (!data?.rows.length || !data.columns) return;
    at = { row: Math.max(0, Math.min(data.rows.length - 1, row)), column: Math.max(0, Math.min(data.columns - 1, column)) };
    on.point(at.row, at.column);
    ask();
  }
  function under(event) {
    const box = canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - LEFT) / columnWidth());
    const row = Math.floor((event.clientY - box.top - TOP) / rowHeight());
    return data && row >= 0 && row < data.rows.length && column >= 0 && column < data.columns ? { row, column } : null;
  }
  function leave() {
    at = null;
    on.leave();
    ask();
  }

  canvas.addEventListener("pointermove", (event) => {
    const found = under(event);
    if (!found) leave();
    else if (found.row !== at?.row || found.column !== at?.column) move(found.row, found.column);
  });
  canvas.addEventListener("pointerleave", leave);
  canvas.addEventListener("blur", leave);
  canvas.addEventListener("click", (event) => {
    const found = under(event);
    if (found) on.open?.(found.row, found.column);
  });
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], PageUp: [-10, 0], PageDown: [10, 0], Home: [0, -1e6], End: [0, 1e6] };
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && at) on.open?.(at.row, at.column);
    const step = steps[/** @type {keyof typeof steps} */ (event.key)];
    if (!step) return;
    event.preventDefault();
    if (at) move(at.row + step[0], at.column + step[1]);
    else move(0, 0);
  });
  const resize = new ResizeObserver(ask);
  resize.observe(canvas);
  const stop = onTheme(() => {
    readColours();
    paint();
    ask();
  });

  return {
    element: canvas,
    /** @param {GridData} next */
    update(next) {
      data = next;
      if (!colours.ink) readColours();
      if (at && (at.row >= data.rows.length || at.column >= data.columns)) at = null;
      paint();
      ask();
      if (at) on.point(at.row, at.column);
    },
    destroy() {
      stop();
      resize.disconnect();
      cancelAnimationFrame(asked);
    },
  };
}

/** Draw a mark that needs no colour: a dead cell is empty with a stroke through it, a hot one has a frame. */
export function drawMark(context, mark, x, y, width, height, colours) {
  if (mark === DEAD) {
    context.fillStyle = colours.surface;
    context.fillRect(x, y, width, height);
    context.strokeStyle = colours.muted;
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(x + 0.5, y + height - 0.5);
    context.lineTo(x + width - 0.5, y + 0.5);
    context.stroke();
  } else {
    context.strokeStyle = colours.ink;
    context.lineWidth = 1;
    context.strokeRect(x + 0.5, y + 0.5, Math.max(1, width - 1), Math.max(1, height - 1));
  }
}

// A grid in a panel, with its readout and legend.

import { h, panel, setText } from "./dom.js";
import { DEAD, HOT, drawMark, grid } from "./grid.js";
import { drawScale } from "./palette.js";
import { colour, onTheme } from "./theme.js";

let serial = 0;

/**
 * @param {string} title
 * @param {string} hint what to do with it, shown until something is pointed at
 * @param {{describe: (row: number, column: number) => string, open?: (row: number, column: number) => void, marks?: boolean, legend?: HTMLElement[]}} options legend: what follows the scale
 */
export function gridPanel(title, hint, options) {
  const id = `readout-${++serial}`;
  const readout = h("p", { class: "readout muted", id, "aria-live": "polite", text: hint });
  const show = (text) => setText(readout, text);
  const cells = grid(title, {
    point: (row, column) => show(options.describe(row, column)),
    leave: () => show(hint),
    open: options.open,
  });
  cells.element.setAttribute("aria-describedby", id);
  const legend = makeLegend(options.marks ?? false);
  legend.element.append(...(options.legend ?? []));
  const tools = h("div", { class: "tools" });
  const { element, hint: note } = panel(title, "", tools, cells.element, readout, legend.element);
  return {
    element,
    tools,
    /**
     * @param {import("./grid.js").GridData} data
     * @param {{low: string, high: string, note: string}} words
     */
    update(data, words) {
      cells.update(data);
      legend.update(data.palette, words.low, words.high);
      setText(note, words.note);
    },
    destroy() {
      cells.destroy();
      legend.destroy();
    },
  };
}

function makeLegend(withMarks) {
  const scale = /** @type {HTMLCanvasElement} */ (h("canvas", { role: "img", "aria-label": "scale of colours" }));
  const low = h("span");
  const high = h("span");
  const marks = withMarks ? [[DEAD, "dead: no slot"], [HOT, "hot: three times a fair share or more"]] : [];
  const icons = marks.map(([mark]) => ({ mark, canvas: /** @type {HTMLCanvasElement} */ (h("canvas", { "aria-hidden": "true" })) }));
  const element = h(
    "div",
    { class: "legend" },
    h("span", { class: "scale" }, low, scale, high),
    ...icons.map(({ canvas }, i) => h("span", { class: "mark" }, canvas, String(marks[i][1]))),
  );
  let palette = /** @type {(() => Uint32Array)|null} */ (null);
  const draw = () => {
    if (palette) drawScale(scale, palette());
    const colours = { ink: colour("ink"), muted: colour("muted"), surface: colour("surface") };
    for (const { mark, canvas } of icons) {
      [canvas.width, canvas.height] = [28, 28];
      const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
      context.scale(2, 2);
      context.fillStyle = colour("bar");
      context.fillRect(1, 1, 12, 12);
      drawMark(context, mark, 1, 1, 12, 12, colours);
    }
  };
  const stop = onTheme(draw);
  let key = "";
  return {
    element,
    update(next, lowText, highText) {
      setText(low, lowText);
      setText(high, highText);
      const now = String(next());
      if (now !== key) {
        key = now;
        palette = next;
        draw();
      }
    },
    destroy: stop,
  };
}

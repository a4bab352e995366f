// A grid of loads by rank, against a fair share. Hundreds of ranks are shown in blocks; a click looks into a block.

import { inBlocks, nameOf, spanOf, summed } from "./blocks.js";
import { choice, h, setAttribute, setText } from "./dom.js";
import { count, times } from "./format.js";
import { gridPanel } from "./gridpanel.js";
import { change, go, link, read } from "./route.js";
import { deviation, idTicks } from "./scales.js";

/**
 * @typedef {object} Axis
 * @property {string} name what a row or column is: layer, EP rank
 * @property {string|null} param of the route, which chooses some of them; null: all are shown one by one
 */

/**
 * @param {string} title
 * @param {string} hint what to do with it
 * @param {{rows: Axis, columns: Axis, describe: (row: number, column: number) => string, open?: (row: number) => void}} options by positions; of one cell
 */
export function blockGrid(title, hint, { rows, columns, describe, open }) {
  const axes = [rows, columns];
  let sides = /** @type {import("./blocks.js").Side[]} */ ([]);
  let found = /** @type {any} */ (null);
  const colours = choice("A block's colour", (value) => change({ blocks: value === "most" ? null : value }));
  const words = h("span", { class: "muted" });
  const back = h("a", { text: "Show all ranks" });
  const grouped = () => sides.some(inBlocks);
  const map = gridPanel(title, hint, {
    describe(row, column) {
      const [r, c] = [sides[0].part[row], sides[1].part[column]];
      if (!grouped()) return describe(r, c);
      const i = row * sides[1].part.length + column;
      const where = `${axes[0].name} ${nameOf(sides[0], row)} · ${axes[1].name} ${nameOf(sides[1], column)}`;
      if (Number.isNaN(found.most[i])) return `${where} · ${describe(r, c)}`;
      return `${where} · most: ${describe(...found.at[i])} · mean of the block: ${times(found.mean[i])} a fair share`;
    },
    open(row, column) {
      const into = sides.flatMap((side, i) => (inBlocks(side) ? [[axes[i].param, spanOf(side, i ? column : row)]] : []));
      if (into.length) go(read().view, Object.fromEntries(into));
      else open?.(sides[0].part[row]);
    },
  });
  map.tools.append(words, back, colours.element);
  return {
    element: map.element,
    /**
     * @param {[import("./blocks.js").Side, import("./blocks.js").Side]} shown rows and columns
     * @param {(row: number, column: number) => number} value multiple of a fair share by positions; NaN: no sample
     * @param {string} note
     */
    update(shown, value, note) {
      sides = shown;
      found = summed(sides[0], sides[1], value);
      const { view, params } = read();
      const byMean = params.get("blocks") === "mean" && grouped();
      const scale = deviation();
      const zoomed = axes.some(({ param }, i) => param && sides[i].to - sides[i].from < sides[i].ids.length);
      map.tools.hidden = !grouped() && !zoomed;
      setText(words, `${axes.flatMap((axis, i) => (axis.param ? [said(axis.name, sides[i])] : [])).join("; ")}.${grouped() ? " Click a block to look into it." : ""}`);
      back.hidden = !zoomed;
      setAttribute(back, "href", link(view, Object.fromEntries(axes.flatMap(({ param }) => (param ? [[param, null]] : [])))));
      colours.element.hidden = !grouped();
      colours.set([["most", "its largest"], ["mean", "its mean"]], byMean ? "mean" : "most");
      const firsts = sides[1].part.map((at) => sides[1].ids[at]);
      map.update(
        {
          rows: sides[0].part.map((_, i) => `${sides[0].ids[sides[0].part[i]]}`),
          columns: firsts.length,
          values: (byMean ? found.mean : found.most).map((ratio) => scale.value(ratio, 0)),
          palette: scale.palette,
          ticks: idTicks(firsts.length).map(({ at }) => ({ at, text: `${firsts[at]}` })),
        },
        { low: scale.low, high: scale.high, note },
      );
    },
    destroy: () => map.destroy(),
  };
}

/** Which ranks of an axis are shown, and how. */
function said(name, side) {
  const { ids, from, to, part } = side;
  const which = to - from === ids.length ? `All ${count(ids.length)} ${name}s` : `${name}s ${ids[from]}–${ids[to - 1]} of ${count(ids.length)}`;
  return inBlocks(side) ? `${which} in blocks of ${count(part[1] - part[0])}` : which;
}

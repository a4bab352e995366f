// Lines over time: uPlot in the page's colours.

import { h, patch } from "./dom.js";
import { minute } from "./format.js";
import { plotLibrary } from "./plot.js";
import { colour, dark, onTheme } from "./theme.js";

// Okabe and Ito's colours, which colour-blind people tell apart, in an order that suits the ground.
const ON_LIGHT = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
const ON_DARK = ["#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#f0e442"];
const lineColour = (i) => (dark() ? ON_DARK : ON_LIGHT)[i % ON_LIGHT.length];
const DRAGGED_PX = 6; // a shorter drag is a click

/** Indices of samples with a gap on both sides, which a line would not show; null where there are none. */
function lone(plot, series) {
  const values = plot.data[series];
  const found = values.flatMap((value, i) => (value !== null && (values[i - 1] ?? null) === null && (values[i + 1] ?? null) === null ? [i] : []));
  return found.length ? found : null;
}

/**
 * @param {string} label what the chart shows, for screen readers
 * @param {(value: number) => string} format of the values
 * @param {number} least where the values' axis begins
 * @param {(from: number, to: number) => void} onZoom is told the Unix seconds between which the chart was dragged
 */
export function lineChart(label, format, least, onZoom) {
  const place = h("div", { class: "chart", role: "img", "aria-label": label });
  const key = h("ul", { class: "key" });
  const missing = h("p", { class: "nodata", role: "status", hidden: true, text: "The part of the page that draws charts did not load. Trying again by itself." });
  const element = h("div", {}, missing, place, key);
  let uPlot = /** @type {any} */ (null); // until the library is here
  let asking = false;
  let ended = false;
  let plot = /** @type {any} */ (null);
  let names = "";
  let data = /** @type {any[]} */ ([]);
  let series = /** @type {string[]} */ ([]);

  const zoomed = (chart) => {
    const { left, width } = chart.select;
    if (width < DRAGGED_PX) return;
    const [from, to] = [left, left + width].map((x) => chart.posToVal(x, "x"));
    chart.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    onZoom(Math.floor(from), Math.max(Math.ceil(to), Math.floor(from) + 1));
  };
  const build = () => {
    plot?.destroy();
    const axis = { stroke: colour("muted"), grid: { stroke: colour("line"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
    plot = new uPlot(
      {
        width: Math.max(place.clientWidth, 200),
        height: 190,
        cursor: { y: false, drag: { x: true, y: false, setScale: false, dist: DRAGGED_PX }, points: { size: 5 } },
        hooks: { setSelect: [zoomed] },
        legend: { show: false },
        scales: { y: { range: (_u, _min, max) => [least, Math.max((max ?? least) * 1.08, least + 0.1)] } },
        axes: [{ ...axis, space: 90, size: 30, values: (_u, ticks) => ticks.map(minute) }, { ...axis, size: 58, values: (_u, ticks) => ticks.map(format) }],
        series: [{}, ...series.map((_name, i) => ({ stroke: lineColour(i), width: 1.75, points: { show: false, filter: lone, size: 4, fill: lineColour(i) }, spanGaps: false }))],
      },
      data,
      place,
    );
    patch(key, series.length > 1 ? series : [], () => h("li", {}, h("span"), h("span", { class: "name" })), (li, name, i) => {
      li.firstChild.style.background = lineColour(i);
      li.lastChild.textContent = name;
    });
  };
  const show = () => {
    if (uPlot && plot && names === series.join("\n")) plot.setData(data);
    else if (uPlot) {
      names = series.join("\n");
      if (place.isConnected) build();
      else requestAnimationFrame(() => ended || build());
    } else fetchLibrary();
  };
  const fetchLibrary = async () => {
    if (asking) return;
    asking = true;
    try {
      uPlot = await plotLibrary();
    } catch { /* the next update tries again */ }
    asking = false;
    missing.hidden = uPlot !== null;
    if (uPlot && !ended) show();
  };
  const resize = new ResizeObserver(() => plot?.setSize({ width: Math.max(place.clientWidth, 200), height: 190 }));
  resize.observe(place);
  const stop = onTheme(() => plot && build());

  return {
    element,
    /**
     * @param {number[]} at Unix seconds
     * @param {{name: string, values: (number|null)[]}[]} lines
     */
    update(at, lines) {
      data = [at, ...lines.map((line) => line.values)];
      series = lines.map((line) => line.name);
      show();
    },
    destroy() {
      ended = true;
      stop();
      resize.disconnect();
      plot?.destroy();
      plot = null;
    },
  };
}

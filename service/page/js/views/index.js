// The views by name; a new one is one line here and one module beside.

import * as advice from "./advice.js";
import * as compare from "./compare.js";
import * as heatmap from "./heatmap.js";
import * as layer from "./layer.js";
import * as overview from "./overview.js";
import * as pools from "./pools.js";
import * as ranks from "./ranks.js";
import * as trace from "./trace.js";
import * as traces from "./traces.js";

/**
 * `menu` is the entry that is marked as current for a view without one of its own; `phases`: it can show one phase;
 * `window` false: it has a window control of its own, and the one above all views is not shown.
 * @type {Record<string, {title: string, inMenu: boolean, menu?: string, phases?: boolean, window?: boolean, create: () => import("../main.js").View}>}
 */
export const VIEWS = {
  overview: { title: "Overview", inMenu: true, phases: true, create: overview.create },
  heatmap: { title: "Heatmap", inMenu: true, phases: true, create: heatmap.create },
  ranks: { title: "Ranks", inMenu: true, phases: true, create: ranks.create },
  pools: { title: "Pools", inMenu: true, create: pools.create },
  traces: { title: "Traces", inMenu: true, create: traces.create },
  compare: { title: "Compare", inMenu: true, phases: true, create: compare.create },
  advice: { title: "Advice", inMenu: true, window: false, create: advice.create },
  layer: { title: "Layer", inMenu: false, menu: "heatmap", phases: true, create: layer.create },
  trace: { title: "Trace", inMenu: false, menu: "traces", create: trace.create },
};

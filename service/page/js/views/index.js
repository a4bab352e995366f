// The views by name; a new one is one line here and one module beside, which is loaded when it is first shown.

/**
 * `menu` is the entry that is marked as current for a view without one of its own; `phases`: it can show one phase;
 * `window` false: it has a window control of its own, and the one above all views is not shown.
 * @type {Record<string, {title: string, inMenu: boolean, menu?: string, phases?: boolean, window?: boolean, load: () => Promise<{create: () => import("../main.js").View}>}>}
 */
export const VIEWS = {
  overview: { title: "Overview", inMenu: true, phases: true, load: () => import("./overview.js") },
  heatmap: { title: "Heatmap", inMenu: true, phases: true, load: () => import("./heatmap.js") },
  ranks: { title: "Ranks", inMenu: true, phases: true, load: () => import("./ranks.js") },
  pools: { title: "Pools", inMenu: true, load: () => import("./pools.js") },
  traces: { title: "Traces", inMenu: true, load: () => import("./traces.js") },
  compare: { title: "Compare", inMenu: true, phases: true, load: () => import("./compare.js") },
  advice: { title: "Advice", inMenu: true, window: false, load: () => import("./advice.js") },
  layer: { title: "Layer", inMenu: false, menu: "heatmap", phases: true, load: () => import("./layer.js") },
  trace: { title: "Trace", inMenu: false, menu: "traces", load: () => import("./trace.js") },
};

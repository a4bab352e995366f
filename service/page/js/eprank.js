// Loads of EP ranks: bars, with the experts that each rank holds, and a grid of whose slots went where.

import { makeBar, setBar } from "./bars.js";
import { blockGrid } from "./blockgrid.js";
import { sideOf } from "./blocks.js";
import { h, panel, setAttribute, setText } from "./dom.js";
import { compact, count, percent, ranges, times } from "./format.js";
import { sortTable } from "./sorttable.js";

const HOT_RANK = 1.25;

/** @type {import("./sorttable.js").Column[]} */
const COLUMNS = [
  { name: "EP rank", rising: true, key: ({ rank }) => rank, show: (cell, { rank }) => setText(cell, `${rank}`) },
  { name: "", wide: true, make: (cell) => cell.append(makeBar()), show: (cell, { load, most, fair }) => setBar(cell.firstChild, { value: load, most, mark: fair, hot: load > HOT_RANK * fair }) },
  {
    name: "slots",
    number: true,
    key: ({ load }) => load,
    show: (cell, { load }) => {
      setText(cell, compact(load));
      setAttribute(cell, "title", `${count(load)} slots`);
    },
  },
  { name: "of a fair share", number: true, key: ({ load }) => load, show: (cell, { load, fair }) => setText(cell, times(load / fair)) },
  { name: "experts", show: (cell, { held }) => setText(cell, held) },
];

/** Bars of the EP ranks of one layer, or of all. */
export function epBars() {
  const table = sortTable("Slots of each EP rank", COLUMNS, { by: 2, what: "EP ranks", rows: 16 });
  const reason = h("p", { class: "nodata" });
  const { element, hint } = panel("EP ranks", "", table.element, reason);
  return {
    element,
    /** @param {any} view with owners @param {number|null} only a layer's id, null for all */
    update(view, only) {
      const chosen = view.layers.map((layer, i) => ({ layer, i })).filter(({ layer }) => only === null || layer.layer === only);
      const known = chosen.filter(({ layer }) => layer.over_ep_ranks && layer.ep_slots);
      const width = Math.max(0, ...known.map(({ layer }) => layer.ep_slots.length));
      const loads = Array.from({ length: width }, (_, r) => known.reduce((sum, { layer }) => sum + (layer.ep_slots[r] ?? 0), 0));
      const fair = loads.reduce((a, b) => a + b, 0) / width;
      table.element.hidden = !fair;
      reason.hidden = !!fair;
      setText(reason, fair ? "" : chosen.find(({ layer }) => layer.ep_reason)?.layer.ep_reason ?? "No such layer.");
      const held = placements(view, chosen.map(({ i }) => i), width);
      const most = Math.max(0, ...loads);
      setText(hint, fair ? `imbalance ratio ${times(most / fair)}${only === null ? " of the sums over layers" : ""}` : "");
      table.update(loads.map((load, rank) => ({ rank, load, fair, most: Math.max(most, 1.2 * fair), held: held[rank] })));
    },
  };
}

/** Which experts each EP rank holds, in words; "varies" where layers differ. */
function placements(view, layers, width) {
  const of = (owners, rank) => ranges(owners.flatMap((owner, expert) => (owner === rank ? [expert] : [])));
  const known = layers.map((i) => view.owners?.[i]).filter((owners) => owners);
  if (!known.length) return Array(width).fill("not known");
  const first = JSON.stringify(known[0]);
  if (known.some((owners) => JSON.stringify(owners) !== first)) return Array(width).fill("varies by layer");
  return Array.from({ length: width }, (_, rank) => of(known[0], rank) || "–");
}

/** Source DP rank x destination EP rank. */
export function flowGrid() {
  let shown = /** @type {any} */ (null);
  const map = blockGrid("From DP rank to EP rank", "Point at a cell: whose tokens (row) went to whose experts (column).", {
    rows: { name: "DP rank", param: "dp" },
    columns: { name: "EP rank", param: "ep" },
    describe(row, column) {
      const value = shown.flows[row][column];
      const total = shown.flows[row].reduce((a, b) => a + b, 0);
      return `DP rank ${shown.ranks[row]} to EP rank ${column} · ${count(value)} slots · ${percent(total ? value / total : 0)} of the DP rank's · ${times(value / shown.fair)} a fair share of all`;
    },
  });
  const reason = h("p", { class: "nodata" });
  const element = h("div", {}, map.element, reason);
  return {
    element,
    /** @param {any} view with flows @param {URLSearchParams} params of the route */
    update(view, params) {
      const flows = view.flows ?? [];
      const columns = flows[0]?.length ?? 0;
      const fair = flows.reduce((all, row) => all + row.reduce((a, b) => a + b, 0), 0) / (flows.length * columns || 1);
      map.element.hidden = !fair;
      reason.hidden = !!fair;
      setText(reason, fair ? "" : view.flows_reason ?? "No tokens in this window.");
      if (!fair) return;
      shown = { flows, fair, ranks: view.dp_ranks.map((rank) => rank.dp_rank) };
      const sides = /** @type {const} */ ([sideOf(shown.ranks, params.get("dp")), sideOf([...Array(columns).keys()], params.get("ep"))]);
      map.update([...sides], (r, c) => flows[r][c] / fair, "slots, against a fair share of all");
    },
    destroy: () => map.destroy(),
  };
}

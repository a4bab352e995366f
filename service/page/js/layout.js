// The order of the experts of each layer in the heatmap's columns.

/**
 * @param {any} view an answer of /v1/view with counts and owners
 * @param {{byLoad: boolean, grouped: boolean}} order
 * @returns {Int32Array[]} for each layer the expert at each column
 */
export function arrange(view, { byLoad, grouped }) {
  return view.layers.map((layer, i) => {
    const counts = view.counts[i];
    const owners = grouped ? view.owners?.[i] : null;
    const experts = Array.from({ length: layer.num_experts }, (_, e) => e);
    if (owners || (byLoad && counts)) {
      experts.sort((a, b) => (owners ? owners[a] - owners[b] : 0) || (byLoad && counts ? counts[b] - counts[a] : 0) || a - b);
    }
    return Int32Array.from(experts);
  });
}

/**
 * Where EP ranks begin when experts are grouped, if that is the same in all layers.
 * @returns {{rank: number, from: number, to: number}[]|null}
 */
export function groups(view, arranged) {
  let found = null;
  for (let i = 0; i < view.layers.length; i++) {
    const owners = view.owners?.[i];
    if (!owners) return null;
    const mine = runs(Array.from(arranged[i], (expert) => owners[expert]));
    if (found && JSON.stringify(found) !== JSON.stringify(mine)) return null;
    found = mine;
  }
  return found;
}

function runs(ranks) {
  const result = [];
  ranks.forEach((rank, at) => {
    const last = result[result.length - 1];
    if (last?.rank === rank) last.to = at + 1;
    else result.push({ rank, from: at, to: at + 1 });
  });
  return result;
}

/** Who holds an expert, in words. @param {number|undefined} owner */
export function ownerText(owner) {
  if (owner === undefined || owner === -1) return null;
  return owner === -2 ? "several EP ranks" : `EP rank ${owner}`;
}

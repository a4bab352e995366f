// The first questions, asked while the other modules of the page are on their way.

import { askAhead } from "./api.js";
import { chosenOf, overviewAsks, queryOf } from "./asked.js";
import { read } from "./route.js";

const ranks = await askAhead("v1/ranks");
const { view, params } = read();
const deployment = ranks && view === "overview" ? chosenOf(params, ranks) : null;
if (deployment) for (const [path, asked] of overviewAsks(queryOf(params, deployment, true))) await askAhead(path, asked);

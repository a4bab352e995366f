// The views by name; a new one is one line here and one module beside.

import * as overview from "./overview.js";

/**
 * `menu` is the entry that is marked as current for a view without one of its own.
 * @type {Record<string, {title: string, inMenu: boolean, menu?: string, create: () => import("../main.js").View}>}
 */
export const VIEWS = {
  overview: { title: "Overview", inMenu: true, create: overview.create },
};

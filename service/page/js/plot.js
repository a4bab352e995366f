// The plot library, which is fetched when the first chart is drawn.

import { h } from "./dom.js";

const here = (path) => new URL(path, import.meta.url).href;
let library = /** @type {Promise<any>|null} */ (null);

/** uPlot's constructor. Where it can't be fetched this fails, and the next call fetches it again. @returns {Promise<any>} */
export function plotLibrary() {
  library ??= Promise.all([
    added("script", { src: here("../vendor/uPlot.iife.min.js") }),
    added("link", { rel: "stylesheet", href: here("../vendor/uPlot.min.css") }),
  ]).then(
    () => /** @type {any} */ (window).uPlot,
    (error) => {
      library = null;
      throw error;
    },
  );
  return library;
}

/** An element of the head, once what it names is there. */
function added(tag, attributes) {
  return new Promise((resolve, reject) => {
    const failed = () => {
      element.remove();
      reject(new Error(`${attributes.src ?? attributes.href} did not load`));
    };
    const element = h(tag, { ...attributes, on: { load: resolve, error: failed } });
    document.head.prepend(element); // the page's own styles come after it
  });
}

// Elements are made without markup in strings, so that nothing that was measured can become HTML.

/**
 * Make an element.
 * @param {string} tag
 * @param {Record<string, any>} [props] `class`, `on` (listeners by event), `text`; everything else is an attribute
 * @param {...(Node|string|null|undefined)} children
 * @returns {HTMLElement}
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, f] of Object.entries(value)) element.addEventListener(event, f);
    else if (name === "text") element.textContent = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children) if (child !== null && child !== undefined) element.append(child);
  return element;
}

/**
 * Set a text only when it changes, so that a selection stays and screen readers keep silent. The node of a text that
 * was there is kept: a browser lays out a new one for much more.
 */
export function setText(element, text) {
  const { firstChild: node } = element;
  if (node instanceof Text && node === element.lastChild && text) {
    if (node.data !== text) node.data = text;
  } else if (element.textContent !== text) element.textContent = text;
}

/** Set or remove an attribute. @param {string|null|undefined|false} value */
export function setAttribute(element, name, value) {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, String(value));
}

/**
 * Bring a parent's children in line with items, reusing elements by position.
 * @template T
 * @param {Element} parent
 * @param {T[]} items
 * @param {() => Element} create
 * @param {(element: any, item: T, index: number) => void} update
 */
export function patch(parent, items, create, update) {
  while (parent.children.length > items.length) parent.lastElementChild?.remove();
  items.forEach((item, i) => {
    const element = parent.children[i] ?? parent.appendChild(create());
    update(element, item, i);
  });
}

/** A titled panel. */
export function panel(title, note, ...children) {
  const hint = h("span", { class: "muted", text: note ?? "" });
  const element = h("section", { class: "panel" }, h("header", {}, h("h2", { text: title }), hint), ...children);
  return { element, hint };
}

/** A part that scrolls by itself, with the keyboard too. @param {boolean} [tall] */
export function scroll(label, child, tall = false) {
  return h("div", { class: tall ? "scroll tall" : "scroll", tabindex: "0", role: "region", "aria-label": label }, child);
}

/**
 * A labelled select that tells of changes.
 * @param {string} label
 * @param {(value: string) => void} onChange
 */
export function choice(label, onChange) {
  const select = /** @type {HTMLSelectElement} */ (h("select", { "aria-label": label, on: { change: () => onChange(select.value) } }));
  const element = h("label", {}, label, select);
  let shown = "";
  return {
    element,
    /** @param {[string, string][]} options value and text */
    set(options, value) {
      const key = JSON.stringify(options);
      if (key !== shown) {
        shown = key;
        select.replaceChildren(...options.map(([v, text]) => h("option", { value: v, text })));
      }
      if (select.value !== value) select.value = value;
    },
  };
}

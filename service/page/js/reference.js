// The reference of the HTTP interface, made from the service's own OpenAPI document. Nothing comes from elsewhere.

import { get } from "./api.js";
import { h, panel, scroll } from "./dom.js";
import { bindToggle } from "./theme.js";

/** A name of a schema in the words of OpenAPI, such as `integer or null`. */
function typeOf(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  const parts = schema.anyOf ?? schema.oneOf;
  if (parts) return parts.map(typeOf).join(" or ");
  if (schema.enum) return schema.enum.map(String).join(" or ");
  if (schema.const !== undefined) return String(schema.const);
  if (schema.type === "array") return `list of ${typeOf(schema.items) || "anything"}`;
  return schema.format ? `${schema.type} (${schema.format})` : String(schema.type ?? "anything");
}

/** What a number may be, in words; empty if there is no bound. */
function boundsOf(schema) {
  const words = [];
  for (const part of [schema, ...(schema?.anyOf ?? [])]) {
    if (part?.minimum !== undefined) words.push(`from ${part.minimum}`);
    if (part?.maximum !== undefined) words.push(`up to ${part.maximum}`);
  }
  return words.join(" ");
}

function table(label, heads, rows) {
  return scroll(
    label,
    h("table", {},
      h("thead", {}, h("tr", {}, ...heads.map((text) => h("th", { scope: "col", text })))),
      h("tbody", {}, ...rows.map(([first, ...others]) =>
        h("tr", {}, h("th", { scope: "row" }, h("code", { text: first })), ...others.map((text) => h("td", { text }))))),
    ),
    true,
  );
}

function folded(title, value) {
  const text = JSON.stringify(value, null, 2);
  return h("details", {}, h("summary", { text: title }), h("pre", { tabindex: "0" }, h("code", { text })));
}

function parameters(operation, label) {
  const found = operation.parameters ?? [];
  if (!found.length) return h("p", { class: "muted", text: "It takes no parameters." });
  const rows = found.map((item) => [
    item.name,
    item.in,
    [typeOf(item.schema), boundsOf(item.schema)].filter(Boolean).join(", "),
    item.required ? "needed" : String(item.schema?.default ?? ""),
    item.description ?? item.schema?.description ?? "",
  ]);
  return table(`Parameters of ${label}`, ["name", "in", "type", "default", "meaning"], rows);
}

function answers(operation, label) {
  const rows = Object.entries(operation.responses).map(([status, answer]) => [
    status,
    Object.entries(answer.content ?? {}).map(([kind, body]) => [kind, typeOf(body.schema)].filter(Boolean).join(": ")).join(", "),
    answer.description ?? "",
  ]);
  return table(`Answers of ${label}`, ["status", "body", "meaning"], rows);
}

function operationPanel(method, path, operation) {
  const label = `${method.toUpperCase()} ${path}`;
  const access = (operation.security ?? []).some((item) => Object.keys(item).length) ? "needs a token" : "open";
  const { element } = panel("", `${(operation.tags ?? []).join(", ")} · ${access}`);
  element.querySelector("h2")?.append(h("code", { text: label }));
  element.id = operation.operationId;
  element.append(h("p", { text: operation.description ?? operation.summary ?? "" }), parameters(operation, label));
  if (operation.requestBody) element.append(folded("Body", operation.requestBody.content));
  element.append(answers(operation, label));
  const ok = Object.entries(operation.responses).filter(([status]) => status.startsWith("2"));
  element.append(folded("Schema of the answer", Object.fromEntries(ok.map(([status, answer]) => [status, answer.content ?? {}]))));
  return element;
}

function operations(described) {
  return Object.entries(described.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ method, path, operation })));
}

async function show(main) {
  const described = await get("openapi.json");
  const schemas = Object.entries(described.components?.schemas ?? {}).map(([name, schema]) => folded(name, schema));
  main.replaceChildren(
    h("div", { class: "reference" },
      h("section", { class: "panel" },
        h("h1", { text: `${described.info.title} ${described.info.version}: HTTP` }),
        h("p", { text: described.info.description ?? "" }),
        h("p", {}, "The same as a document: ", h("a", { href: "openapi.json", text: "openapi.json" }), "."),
      ),
      ...operations(described).map(({ method, path, operation }) => operationPanel(method, path, operation)),
      panel("Schemas", "what the answers above name", ...schemas).element,
    ),
  );
  document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
}

const main = /** @type {HTMLElement} */ (document.getElementById("main"));
bindToggle(/** @type {HTMLElement} */ (document.getElementById("theme")));
show(main).catch((error) => {
  main.replaceChildren(h("section", { class: "message", role: "alert" }, h("h1", { text: "The reference can't be shown" }), h("p", { text: error.message })));
});

// Signing in: the service takes the token and sets a cookie that scripts can't read. The token is kept nowhere.

import { h } from "./dom.js";

/**
 * A form that asks for a token.
 * @param {() => void} onDone called when the service has taken it
 */
export function signIn(onDone) {
  const input = h("input", {
    type: "password", id: "token", name: "token", autocomplete: "current-password", required: true, spellcheck: "false",
  });
  const problem = h("p", { class: "muted", role: "alert", id: "signin-problem" });
  const button = h("button", { type: "submit", text: "Sign in" });

  const send = async (event) => {
    event.preventDefault();
    button.setAttribute("disabled", "");
    problem.textContent = "";
    try {
      const answer = await fetch("v1/session", {
        method: "POST",
        credentials: "same-origin",
        headers: { Authorization: `Bearer ${/** @type {HTMLInputElement} */ (input).value.trim()}` },
      });
      if (answer.ok) return onDone();
      const body = await answer.json().catch(() => null);
      problem.textContent = answer.status === 403 ? (body?.detail ?? "This token may not read.") : `${body?.title ?? "Not allowed"}. Try another.`;
    } catch {
      problem.textContent = "The service does not answer. Check that moescope serve runs.";
    } finally {
      button.removeAttribute("disabled");
    }
  };
  return h(
    "section",
    { class: "message", "data-state": "signin" },
    h("h1", { text: "Sign in" }),
    h("p", { text: "This service asks for a token. Use one with the scope read." }),
    h("form", { on: { submit: send } }, h("label", { for: "token", text: "Token " }), input, " ", button),
    problem,
  );
}

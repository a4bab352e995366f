// What the view Traces shows when there are none: how to get some.

import { h } from "./dom.js";

const WORDS = {
  off: ["Traces are off", "This service keeps no traces, since it has no store. Nothing is traced until an operator asks for it."],
  none: ["No request has been traced yet", "This service keeps traces, but none has come, or all are past their time to live. vLLM traces nothing unless told to."],
};

/** @param {"off"|"none"} state */
export function howToTrace(state) {
  const [title, words] = WORDS[state];
  const lines = [
    ...(state === "off" ? ["moescope serve --store FOLDER                 # keeps traces for a week"] : []),
    "MOESCOPE_TRACE_RATE=0.01 vllm serve ...       # one request of a hundred",
    "MOESCOPE_TRACE_OPT_IN=1 vllm serve ...        # requests that ask for it",
  ];
  return h(
    "section",
    { class: "message", "data-state": `traces-${state}` },
    h("h1", { text: title }),
    h("p", { text: words }),
    h("pre", { tabindex: "0" }, h("code", { text: lines.join("\n") })),
    h(
      "p",
      {},
      h("strong", { text: "Handle traces like prompts. " }),
      "They hold no text and no token ids, yet the experts of a token depend on it and on what came before: somebody with the same model can test guesses of a prompt against its trace.",
    ),
  );
}

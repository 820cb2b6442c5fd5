// The lines of the workflow that run: a method, and the line of `_saga` that calls it, found in the file itself.

import { open } from "./api.js";
import { element, setText } from "./dom.js";
import { steps } from "./saga.js";

const FILE = "/source/order.py";
let text = null; // of the file, once it is loaded

/** What an order does: the method of the workflow that runs, and the line after which `_saga` calls it. */
export const CALLS = {
  approval: ["_wait_for_approval", "_saga"],
  step: ["_run", "REVERSIBLE_STEPS"],
  finalStep: ["_run", "FINAL_STEPS"],
  compensation: ["_compensate", "_saga"],
};

function doing({ status }) {
  if (status === "awaiting_approval") return "approval";
  if (["compensating", "needs_attention", "failed", "cancelled"].includes(status)) return "compensation";
  const next = steps.findIndex(({ starts_from }) => starts_from === status);
  const isFinal = status === "completed" || next > steps.findLastIndex(({ compensation }) => compensation);
  return isFinal ? "finalStep" : "step";
}

/** Finds a method in the text: `lines`, without the indentation of the class, and the number of the `first` of them. */
function method(text, name) {
  const lines = text.split("\n");
  const first = lines.findIndex((line) => line.startsWith(`    async def ${name}(`));
  if (first < 0) return null;
  const length = lines.slice(first + 1).findIndex((line) => /^ {0,4}\S/.test(line)) + 1;
  const body = lines.slice(first, length ? first + length : undefined).map((line) => line.slice(4));
  while (body.at(-1) === "") body.pop();
  return { first: first + 1, lines: body };
}

/** Finds the lines of what an order does: `saga`, the index of the `call` in it, and the method that `runs`. */
export function find(text, what) {
  const [name, after] = CALLS[what];
  const [saga, runs] = [method(text, "_saga"), method(text, name)];
  if (!saga || !runs) return null;
  const start = saga.lines.findIndex((line) => line.includes(after));
  const call = saga.lines.findIndex((line, index) => start >= 0 && index >= start && line.includes(`self.${name}(`));
  return call < 0 ? null : { saga, call, runs };
}

/** Loads the file again: it may have changed while the page was open. Without permission, there is no text. */
export async function load() {
  text = await open(FILE, { headers: {} }).then((response) => response.text(), () => "");
}

/** Returns the panel, and `update(order)`. The panel stays hidden if the lines are not found. */
export function sourcePanel() {
  const title = element("span");
  const code = element("div", { class: "code" });
  const panel = element("section", { class: "source", "aria-label": "The code of the saga", hidden: true }, element("h3", {}, title, " ", element("code", {}, "app/workflows/order.py")), code);
  let shown = {};

  async function update(order) {
    if (text === null) await load();
    const what = doing(order);
    const found = text && find(text, what);
    panel.hidden = !found;
    if (!found) return;
    setText(title, ["completed", "failed", "cancelled"].includes(order.status) ? "Where it ended in" : "Where it stands in");
    if (shown.what === what && shown.text === text) return;
    shown = { what, text };
    code.replaceChildren(listing(found.saga, [found.call]), listing(found.runs, [0]));
  }

  return { panel, update };
}

function listing({ first, lines }, marked) {
  const rows = lines.map((line, index) => element(marked.includes(index) ? "mark" : "span", { "data-line": first + index }, `${line}\n`));
  return element("pre", { tabindex: 0 }, element("code", {}, ...rows));
}

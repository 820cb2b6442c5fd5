// A dialog with a few fields.

import { element } from "./dom.js";
import { showProblem, valuesOf } from "./fields.js";

/**
 * Opens the dialog, and passes the values to `send`. If that throws, the problem is shown beside its field and the dialog
 * stays open. Resolves to true once sent, to false if dismissed.
 */
export function ask({ title, note, fields, confirm, tone = "primary", send }) {
  const form = element(
    "form",
    { novalidate: true },
    element("h2", { id: "dialog-title" }, title),
    note && element("p", { class: "note" }, note),
    ...fields.map(({ label, ...input }) =>
      element("div", { class: "field" }, element("label", { for: `ask-${input.name}` }, label), element("input", { id: `ask-${input.name}`, ...input })),
    ),
    element("p", { class: "problem", role: "alert", hidden: true }),
    element(
      "div",
      { class: "buttons" },
      element("button", { class: tone }, confirm),
      element("button", { type: "button", onclick: () => dialog.close() }, "Back"),
    ),
  );
  const dialog = element("dialog", { "aria-labelledby": "dialog-title" }, form);
  let sent = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await send(valuesOf(form));
      sent = true;
      dialog.close();
    } catch (problem) {
      showProblem(form, problem);
    }
  });
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(sent);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

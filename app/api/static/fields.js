// Reads the values of forms, and shows the API's errors beside their fields.

import { element } from "./dom.js";

let count = 0;

/** Returns a form's values, dotted names as nested objects: `shipping_address.city` is {shipping_address: {city}}. */
export function valuesOf(form) {
  const values = {};
  for (const [name, value] of new FormData(form)) {
    const path = name.split(".");
    const last = path.pop();
    path.reduce((level, part) => (level[part] ??= {}), values)[last] = value;
  }
  return values;
}

/** Shows each error beside its field, the rest in the form's alert, and focuses the first invalid field. */
export function showProblem(form, problem) {
  clearProblem(form);
  const rest = problem.errors.length ? [] : [problem.message];
  for (const { field, message } of problem.errors) {
    const named = form.elements.namedItem(field);
    const input = named instanceof RadioNodeList ? named[0] : named;
    if (!input) {
      rest.push(`${field}: ${message}`);
      continue;
    }
    const id = `error-${++count}`;
    input.closest(".field").append(element("p", { class: "error", id }, message));
    input.setAttribute("aria-invalid", "true");
    input.setAttribute("aria-describedby", id);
  }
  const alert = form.querySelector("[role=alert]");
  alert.textContent = rest.join(" ");
  alert.hidden = rest.length === 0;
  form.querySelector("[aria-invalid]:not([type=hidden])")?.focus();
}

export function clearProblem(form) {
  form.querySelector("[role=alert]").hidden = true;
  for (const error of form.querySelectorAll(".error")) error.remove();
  for (const input of form.querySelectorAll("[aria-invalid]")) {
    input.removeAttribute("aria-invalid");
    input.removeAttribute("aria-describedby");
  }
}

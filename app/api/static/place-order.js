// The form for an order of one's own. Loaded when it is unfolded.

import { call, Problem } from "./api.js";
import { clearProblem, showProblem, valuesOf } from "./fields.js";
import { money } from "./format.js";
import { keep, linkTo } from "./order-store.js";
import * as products from "./products.js";

const form = document.getElementById("place");
const sum = document.getElementById("sum");
const postalCode = form.elements.namedItem("shipping_address.postal_code");
const delivery = form.elements.namedItem("delivery");

// The last request. Sent again, after a lost response or by a double click, it has the same key and makes no second order;
// a moment after the response, it is a new order.
let last = { body: null, key: null };

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { customer_id, email, payment_method, shipping_address } = valuesOf(form);
  const lines = products.chosen().map(({ item, quantity }) => ({ sku: item.sku, quantity }));
  const body = { customer_id, email, payment_method, lines, shipping_address };
  if (JSON.stringify(body) !== JSON.stringify(last.body)) last = { body, key: crypto.randomUUID() };
  const sent = last;
  try {
    const order = await call("POST", "/orders", { body, key: sent.key });
    clearProblem(form);
    keep(order);
    location.hash = linkTo(order);
    setTimeout(() => sent === last && (last = { body: null, key: null }), 1000);
  } catch (problem) {
    showProblem(form, atProducts(problem, lines));
  }
});

/** Maps the API's lines to the form's products: `lines.0.quantity` is the quantity of the first product chosen. */
function atProducts(problem, lines) {
  const errors = problem.errors.map(({ field, message }) => {
    const [, line] = /^lines\.(\d+)/.exec(field) ?? [];
    return { message, field: line ? `quantity:${lines[line].sku}` : field };
  });
  return new Problem({ detail: problem.message, errors });
}

// Keeps the choice of the delivery and the postal code in step.
form.addEventListener("input", ({ target }) => {
  if (target.name === "delivery") postalCode.value = target.value;
  if (target === postalCode) delivery.value = ["00000", "99999"].includes(target.value) ? target.value : delivery[0].value;
  const chosen = products.chosen();
  const amount = chosen.reduce((total, { item, quantity }) => total + item.unit_price.amount * quantity, 0);
  sum.value = chosen.length ? money({ amount, currency: chosen[0].item.unit_price.currency }) : "–";
});

products.start();

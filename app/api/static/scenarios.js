// The scenario buttons: each places an order at once, of products in stock, that ends in its own way, and shows it.

import { call } from "./api.js";
import { notify } from "./dom.js";
import { get, keep, linkTo } from "./order-store.js";
import * as stock from "./stock.js";

const LARGE = 50_000; // the API's default threshold of an approval, in minor units
const CANCEL_AFTER = 6_000; // ms: by then, the carrier has refused several attempts

const SCENARIOS = {
  works: {},
  declined: { payment_method: "pm_card_declined" },
  outage: { postal_code: "99999", cancelAfter: CANCEL_AFTER },
  approval: { isLarge: true },
};

const own = document.getElementById("own");
const form = document.getElementById("place");
const customer = document.getElementById("customer");

for (const button of document.querySelectorAll("#scenarios button")) {
  button.addEventListener("click", async () => {
    if (button.ariaDisabled) return;
    button.ariaDisabled = "true";
    await run(button.value).catch((problem) => showProblem("placed", problem));
    button.ariaDisabled = null;
  });
}

async function run(scenario) {
  if (!stock.all().length) await stock.load(); // pressed before the page was loaded
  if (!stock.all().length) notify(stock.refusal ?? "There are no products to order yet.");
  else if (scenario === "twenty") await placeTwenty();
  else await place(SCENARIOS[scenario]);
}

async function place({ payment_method = "pm_card_ok", postal_code = "10115", isLarge = false, cancelAfter }) {
  const shipping_address = { name: "Ada Lovelace", street: "Invalidenstrasse 116", city: "Berlin", postal_code, country: "DE" };
  const body = { customer_id: customer.value, email: "ada@example.com", payment_method, lines: [line(isLarge)], shipping_address };
  const order = await call("POST", "/orders", { body, key: crypto.randomUUID() });
  keep(order);
  location.hash = linkTo(order);
  if (cancelAfter) setTimeout(() => cancel(order).catch((problem) => showProblem("cancelled", problem)), cancelAfter);
}

/** One product: of the most expensive one as many as need an approval, else one of any that needs none. */
function line(isLarge) {
  const inStock = stock.all().filter(({ available }) => available);
  const products = (inStock.length ? inStock : stock.all()).sort((a, b) => a.unit_price.amount - b.unit_price.amount);
  if (isLarge) {
    const { sku, unit_price } = products.at(-1);
    return { sku, quantity: Math.min(1000, Math.ceil(LARGE / unit_price.amount)) };
  }
  const small = products.filter(({ unit_price }) => unit_price.amount < LARGE);
  return { sku: (small[Math.floor(Math.random() * small.length)] ?? products[0]).sku, quantity: 1 };
}

async function cancel({ order_id }) {
  if (!get(order_id)?.cancellable) return;
  keep(await call("POST", `/orders/${encodeURIComponent(order_id)}/cancel`, { body: { reason: "the carrier is down" } }));
}

async function placeTwenty() {
  location.hash = "#/orders";
  const { placeAtRandom } = await import("./random-orders.js");
  const problems = await placeAtRandom(20, stock.all(), customer.value === customer.defaultValue ? null : customer.value);
  if (problems.length) notify(`${problems.length} of 20 orders ${mayHave(problems[0]) ? "may not have been" : "were not"} placed: ${problems[0].message}`);
  else notify("20 orders placed.");
}

/** Without an answer from the API or its database, the request may have taken effect. */
const mayHave = ({ status }) => status === 0 || status >= 500;

/** A caller with the orders of one customer alone has to enter that customer in the form. */
async function showProblem(done, problem) {
  if (!problem.errors?.some(({ field }) => field === "customer_id")) return notify(`The order ${mayHave(problem) ? "may not have been" : "was not"} ${done}: ${problem.message}`);
  own.open = true;
  const fields = await import("./fields.js");
  fields.showProblem(form, problem);
}

// The products of the form: price, available quantity, quantity to order, and a button to restock.

import { call } from "./api.js";
import { element, flash, notify, setText, set } from "./dom.js";
import { money } from "./format.js";
import * as stock from "./stock.js";

const RESTOCK = 10;

const list = document.getElementById("products");
const more = document.getElementById("more-products");
const refused = document.getElementById("no-products");
const rows = new Map(); // sku: { item, row, quantity, … }

/** The chosen products: [{ item, quantity }], with the quantity as typed; the API validates it. */
export const chosen = () =>
  [...rows.values()]
    .map(({ item, quantity }) => ({ item, quantity: Number(quantity.value) }))
    .filter(({ quantity }) => quantity !== 0);

/** Shows the products that are loaded. The cheapest one is chosen at first: its order needs no approval. */
export function start() {
  stock.all().forEach(show);
  stock.onChange(show);
  setText(refused, stock.refusal ?? "");
  refused.hidden = !stock.refusal;
  const [cheapest] = [...rows.values()].sort((a, b) => a.item.unit_price.amount - b.item.unit_price.amount);
  if (!cheapest) return;
  cheapest.quantity.value = 1;
  cheapest.quantity.dispatchEvent(new Event("input", { bubbles: true }));
}

more.addEventListener("click", async () => {
  if (more.ariaDisabled) return;
  more.ariaDisabled = "true";
  await stock.loadMore().catch((problem) => notify(`The products could not be loaded. ${problem.message}`));
  more.ariaDisabled = null;
  more.hidden = !stock.hasMore();
});

function show(item) {
  if (!rows.has(item.sku)) {
    rows.set(item.sku, build(item));
    list.append(rows.get(item.sku).row);
  }
  refused.hidden = true;
  const product = rows.get(item.sku);
  const moved = product.item.available !== item.available;
  product.item = item;
  more.hidden = !stock.hasMore();
  setText(product.name, item.name);
  setText(product.price, money(item.unit_price));
  setText(product.available, item.available ? `${item.available.toLocaleString()} in stock` : "Sold out");
  set(product.available, "data-tone", item.available ? null : "bad");
  set(product.restock, "aria-label", `+${RESTOCK}: restock ${item.name}`);
  set(product.quantity, "aria-label", `Quantity of ${item.name}`);
  if (moved) flash(product.available);
  warn(product);
}

function build(item) {
  const product = { item };
  product.name = element("b");
  product.price = element("span");
  product.available = element("span");
  product.restock = element("button", { type: "button", onclick: () => restock(product) }, `+${RESTOCK}`);
  product.quantity = element("input", { type: "number", name: `quantity:${item.sku}`, value: 0, min: 0, oninput: () => warn(product) });
  product.warning = element("p", { class: "warning", hidden: true });
  product.row = element(
    "li",
    { class: "field" },
    element("div", { class: "what" }, product.name, element("span", {}, product.price, " · ", product.available)),
    product.restock,
    product.quantity,
    product.warning,
  );
  return product;
}

/** Warns of an order that exceeds the stock, but does not prevent it: a saga that fails is worth a look. */
function warn({ item, quantity, warning }) {
  warning.hidden = Number(quantity.value) <= item.available;
  setText(warning, item.available ? `Only ${item.available} left: the order will fail.` : "Sold out: the order will fail.");
}

async function restock({ item }) {
  try {
    stock.keep(await call("POST", `/inventory/${encodeURIComponent(item.sku)}/restock`, { body: { quantity: RESTOCK }, key: crypto.randomUUID() }));
  } catch (problem) {
    notify(`${item.name} was not restocked: ${problem.message}`);
  }
}

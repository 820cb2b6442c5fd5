// The products, a page at a time: price, available quantity, quantity to order, and a button to restock.

import { call } from "./api.js";
import { element, flash, notify, setText, set } from "./dom.js";
import { money } from "./format.js";

const RESTOCK = 10;

const list = document.getElementById("products");
const more = document.getElementById("more-products");
const refused = document.getElementById("no-products");
const products = new Map(); // sku: { item, row, quantity, … }
let pages = 1; // how many of them are on the page
let cursor = null; // the last SKU of these; null if there are no more

export const all = () => [...products.values()].map(({ item }) => item);

/** The chosen products: [{ item, quantity }], with the quantity as typed; the API validates it. */
export const chosen = () =>
  [...products.values()]
    .map(({ item, quantity }) => ({ item, quantity: Number(quantity.value) }))
    .filter(({ quantity }) => quantity !== 0);

/** Loads the pages again that were loaded before. A caller without the permission to read products sees only why. */
export async function load() {
  cursor = null;
  try {
    for (let page = 0; page < pages && (cursor || !page); page++) await loadPage();
    refused.hidden = true;
  } catch (problem) {
    if (problem.status !== 403) throw problem;
    refused.textContent = `The products cannot be shown. ${problem.message}`;
    refused.hidden = false;
  }
  // The cheapest product is chosen from the start: its order needs no approval.
  const [cheapest] = [...products.values()].sort((a, b) => a.item.unit_price.amount - b.item.unit_price.amount);
  if (!cheapest || chosen().length) return;
  cheapest.quantity.value = 1;
  cheapest.quantity.dispatchEvent(new Event("input", { bubbles: true }));
}

async function loadPage() {
  const { items, next_cursor } = await call("GET", `/inventory?${new URLSearchParams(cursor ? { cursor } : {})}`);
  cursor = next_cursor;
  more.hidden = !cursor;
  items.forEach(show);
}

more.addEventListener("click", async () => {
  if (more.ariaDisabled) return;
  more.ariaDisabled = "true";
  await loadPage().then(() => pages++, (problem) => notify(`The products could not be loaded. ${problem.message}`));
  more.ariaDisabled = null;
});

/** Shows a change of a product, unless a later page will load it. */
export function change(item) {
  if (products.has(item.sku) || !cursor || item.sku < cursor) show(item);
}

function show(item) {
  if (!products.has(item.sku)) {
    products.set(item.sku, build(item));
    list.append(products.get(item.sku).row);
  }
  const product = products.get(item.sku);
  const moved = product.item.available !== item.available;
  product.item = item;
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
    show(await call("POST", `/inventory/${encodeURIComponent(item.sku)}/restock`, { body: { quantity: RESTOCK }, key: crypto.randomUUID() }));
  } catch (problem) {
    notify(`${item.name} was not restocked: ${problem.message}`);
  }
}

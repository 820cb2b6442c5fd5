// The articles: what is in stock, what it costs, how many to order, and a restock by a click.

import { call } from "./api.js";
import { element, flash, notify, say, set } from "./dom.js";
import { money } from "./format.js";

const RESTOCK = 10;

const list = document.getElementById("articles");
const articles = new Map(); // sku: { item, row, quantity, … }

export const all = () => [...articles.values()].map(({ item }) => item);

/** What is chosen: [{ item, quantity }], quantity as typed, for the API to judge. */
export const chosen = () =>
  [...articles.values()]
    .map(({ item, quantity }) => ({ item, quantity: Number(quantity.value) }))
    .filter(({ quantity }) => quantity !== 0);

export async function load() {
  const { items } = await call("GET", "/inventory");
  items.forEach(show);
  // Something is chosen from the start: the cheapest, which needs nobody's approval.
  const [cheapest] = [...articles.values()].sort((a, b) => a.item.unit_price.amount - b.item.unit_price.amount);
  if (!cheapest || chosen().length) return;
  cheapest.quantity.value = 1;
  cheapest.quantity.dispatchEvent(new Event("input", { bubbles: true }));
}

export function show(item) {
  if (!articles.has(item.sku)) {
    articles.set(item.sku, build(item));
    list.append(articles.get(item.sku).row);
  }
  const article = articles.get(item.sku);
  const moved = article.item.available !== item.available;
  article.item = item;
  say(article.name, item.name);
  say(article.price, money(item.unit_price));
  say(article.available, item.available ? `${item.available.toLocaleString()} in stock` : "Sold out");
  set(article.available, "data-tone", item.available ? null : "bad");
  set(article.restock, "aria-label", `+${RESTOCK}: restock ${item.name}`);
  set(article.quantity, "aria-label", `Quantity of ${item.name}`);
  if (moved) flash(article.available);
  warn(article);
}

function build(item) {
  const article = { item };
  article.name = element("b");
  article.price = element("span");
  article.available = element("span");
  article.restock = element("button", { type: "button", onclick: () => restock(article) }, `+${RESTOCK}`);
  article.quantity = element("input", { type: "number", name: `quantity:${item.sku}`, value: 0, min: 0, oninput: () => warn(article) });
  article.warning = element("p", { class: "warning", hidden: true });
  article.row = element(
    "li",
    { class: "field" },
    element("div", { class: "what" }, article.name, element("span", {}, article.price, " · ", article.available)),
    article.restock,
    article.quantity,
    article.warning,
  );
  return article;
}

/** Nothing keeps anyone from ordering more than there is: a saga that fails is worth a look. It only says so. */
function warn({ item, quantity, warning }) {
  warning.hidden = Number(quantity.value) <= item.available;
  say(warning, item.available ? `Only ${item.available} left: the order will fail.` : "Sold out: the order will fail.");
}

async function restock({ item }) {
  try {
    show(await call("POST", `/inventory/${encodeURIComponent(item.sku)}/restock`, { body: { quantity: RESTOCK }, key: crypto.randomUUID() }));
  } catch (problem) {
    notify(`${item.name} was not restocked: ${problem.message}`);
  }
}

// The articles: what is in stock, what it costs, how many to order, and a restock by a click.

import { call } from "./api.js";
import { notify, element, flash, say, set } from "./dom.js";
import { money } from "./format.js";

const RESTOCK = 10;

const list = document.getElementById("articles");
const articles = new Map(); // sku: { item, row, quantity, … }
let changedMeanwhile = new Set();

export const all = () => [...articles.values()].map(({ item }) => item);

/** What is chosen: [{ item, quantity }], quantity as typed, for the API to judge. */
export const chosen = () =>
  [...articles.values()]
    .map(({ item, quantity }) => ({ item, quantity: Number(quantity.value) }))
    .filter(({ quantity }) => quantity !== 0);

export async function load() {
  changedMeanwhile = new Set();
  const { items } = await call("GET", "/inventory");
  // An event that came while the answer was under way is at least as new as the answer.
  for (const item of items) if (!changedMeanwhile.has(item.sku)) show(item);
  if (chosen().length === 0 && articles.size) choose(articles.values().next().value, 1);
}

export function changed(item) {
  changedMeanwhile.add(item.sku);
  show(item);
}

function show(item) {
  if (!articles.has(item.sku)) {
    articles.set(item.sku, build(item));
    list.append(articles.get(item.sku).row);
  }
  const article = articles.get(item.sku);
  const moved = article.item.available !== item.available;
  article.item = item;
  say(article.name, item.name);
  say(article.price, money(item.unit_price));
  say(article.available, item.available ? `${item.available} in stock` : "Sold out");
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
  article.available = element("span", { class: "available" });
  article.restock = element("button", { type: "button", class: "small", onclick: () => restock(article) }, `+${RESTOCK}`);
  article.quantity = element("input", { type: "number", name: `quantity:${item.sku}`, value: 0, min: 0, max: 1000, oninput: () => warn(article) });
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

function choose(article, quantity) {
  article.quantity.value = quantity;
  article.quantity.dispatchEvent(new Event("input", { bubbles: true }));
}

/** Nothing keeps anyone from ordering more than there is: a saga that fails is worth a look. It only says so. */
function warn({ item, quantity, warning }) {
  warning.hidden = Number(quantity.value) <= item.available;
  say(warning, item.available ? `Only ${item.available} left: the order will fail.` : "Sold out: the order will fail.");
}

async function restock({ item }) {
  try {
    changed(await call("POST", `/inventory/${encodeURIComponent(item.sku)}/restock`, { body: { quantity: RESTOCK }, key: crypto.randomUUID() }));
  } catch (problem) {
    notify(`${item.name} was not restocked: ${problem.message}`);
  }
}

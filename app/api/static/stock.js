// The products and their available quantities, a page at a time, and the listeners for changes.

import { call } from "./api.js";

const products = new Map(); // sku: product
const listeners = [];
let pages = 1; // how many of them are loaded
let cursor = null; // the last SKU of these; null if there are no more

/** Why there are no products, for a caller without the permission to read them; else null. */
export let refusal = null;

/** Calls `listener(product, before)` for each product that is new (`before` is undefined) or has changed. */
export const onChange = (listener) => listeners.push(listener);

export const all = () => [...products.values()];

export const hasMore = () => cursor !== null;

/** Loads the pages again that were loaded before. */
export async function load() {
  cursor = null;
  refusal = null;
  try {
    for (let page = 0; page < pages && (cursor || !page); page++) await loadPage();
  } catch (problem) {
    if (problem.status !== 403) throw problem;
    refusal = `The products cannot be shown. ${problem.message}`;
  }
}

export async function loadMore() {
  await loadPage();
  pages++;
}

async function loadPage() {
  const { items, next_cursor } = await call("GET", `/inventory?${new URLSearchParams(cursor ? { cursor } : {})}`);
  cursor = next_cursor;
  items.forEach(keep);
}

/** Stores a change of a product, unless a later page will load it. */
export function change(item) {
  if (products.has(item.sku) || !cursor || item.sku < cursor) keep(item);
}

export function keep(item) {
  const before = products.get(item.sku);
  products.set(item.sku, item);
  for (const listener of listeners) listener(item, before);
}

// The newest version of each order that this page has seen, and the listeners for changes.

import { statusOf } from "./format.js";

const orders = new Map();
const open = new Map(); // the orders that are not final, by id: { order, since }, the time of the last change seen, in ms
const listeners = [];

/** Calls `listener(order, before)` for each order that is new (`before` is undefined) or has changed. */
export const onChange = (listener) => listeners.push(listener);

/** The address of an order on this page. */
export const linkTo = ({ order_id }) => `#/orders/${encodeURIComponent(order_id)}`;

export const get = (orderId) => orders.get(orderId);

/** The orders that are not final: [{ order, since }]. */
export const openOrders = () => [...open.values()];

/** Forgets all orders: what comes next may be older, for example from a backup. */
export function forget() {
  orders.clear();
  open.clear();
}

/**
 * Stores an order unless a newer version is stored already: responses and events overtake each other. Of two versions with
 * the same time, an event's is the newer one. Returns true if anything changed.
 */
export function keep(order, { isEvent = false } = {}) {
  const before = orders.get(order.order_id);
  if (before) {
    const newer = Date.parse(order.updated_at) - Date.parse(before.updated_at);
    if (newer < 0 || (newer === 0 && !isEvent)) return false;
    if (JSON.stringify(order) === JSON.stringify(before)) return false;
  }
  orders.set(order.order_id, order);
  if (statusOf(order).final) open.delete(order.order_id);
  else open.set(order.order_id, { order, since: performance.now() });
  for (const listener of listeners) listener(order, before);
  return true;
}

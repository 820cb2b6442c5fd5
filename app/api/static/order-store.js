// The newest version of each order that this page has seen, and the listeners for changes.

const orders = new Map();
const listeners = [];

/** Calls `listener(order, before)` for each order that is new (`before` is undefined) or has changed. */
export const onChange = (listener) => listeners.push(listener);

/** The address of an order on this page. */
export const linkTo = ({ order_id }) => `#/orders/${encodeURIComponent(order_id)}`;

export const get = (orderId) => orders.get(orderId);

/** Forgets all orders: what comes next may be older, for example from a backup. */
export const forget = () => orders.clear();

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
  for (const listener of listeners) listener(order, before);
  return true;
}

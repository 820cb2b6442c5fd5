// The orders that this page has seen, each in its newest version, and who wants to know when one changes.

const orders = new Map();
const listeners = [];

/** Calls `listener(order, before)` for each order that is new (`before` is undefined) or has changed. */
export const onChange = (listener) => listeners.push(listener);

/** Where the page shows an order. */
export const linkTo = ({ order_id }) => `#/orders/${encodeURIComponent(order_id)}`;

export const get = (orderId) => orders.get(orderId);

/**
 * Keeps an order unless a newer version is here already: answers and events overtake each other. Of two with the same
 * time, the event is the later one. Tells whether anything changed.
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

// What a person can do about an order: a button for each action, there only while the action applies.

import { call } from "./api.js";
import { ask } from "./dialog.js";
import { element } from "./dom.js";
import { keep } from "./order-store.js";

// The address is settled once the payment is charged: shipping begins then.
const ADDRESS_OPEN = ["placed", "awaiting_approval", "reserved"];
const ADDRESS = { name: "Name", street: "Street", city: "City", postal_code: "Postal code", country: "Country" };
const REASON = [{ name: "reason", label: "Reason (optional)" }];

/**
 * Returns the buttons, and `update(order)`. `refuse(problem)` shows a refusal. When the button that had the focus is gone,
 * the focus goes to `heading`.
 */
export function actionsFor(path, heading, refuse) {
  let order = null;
  const send = (method, action, body) => call(method, `${path}/${action}`, { body }).then(keep);
  const waits = () => order.cancellable && order.status === "awaiting_approval"; // a cancelled one waits for nothing

  const actions = [
    button("Approve", "primary", waits, () => send("POST", "approval", { approved: true })),
    button("Decline", null, waits, () =>
      ask({
        title: "Decline this order?",
        fields: REASON,
        confirm: "Decline",
        tone: "danger",
        send: ({ reason }) => send("POST", "approval", { approved: false, reason: reason || null }),
      }),
    ),
    button("Change address", null, () => order.cancellable && ADDRESS_OPEN.includes(order.status), () =>
      ask({
        title: "Change the address",
        fields: Object.entries(ADDRESS).map(([name, label]) => ({ name, label, value: order.shipping_address[name], required: true })),
        confirm: "Change address",
        send: (address) => send("PUT", "shipping-address", address),
      }),
    ),
    button("Cancel order", null, () => order.cancellable, () =>
      ask({
        title: "Cancel this order?",
        note: "Completed steps are compensated.",
        fields: REASON,
        confirm: "Cancel order",
        tone: "danger",
        send: ({ reason }) => send("POST", "cancel", { reason: reason || null }),
      }),
    ),
  ];

  function button(label, tone, applies, act) {
    const onclick = () => {
      refuse(null);
      act()
        .catch(refuse)
        .finally(() => document.activeElement === document.body && heading.focus());
    };
    return { applies, node: element("button", { type: "button", class: tone, hidden: true, onclick }, label) };
  }

  return {
    buttons: actions.map(({ node }) => node),
    update(newOrder) {
      order = newOrder;
      const focused = actions.find(({ node }) => node === document.activeElement)?.node;
      for (const { node, applies } of actions) node.hidden = !applies();
      if (focused?.hidden) heading.focus();
    },
  };
}

// The actions on an order: a button for each, shown only while the action applies.

import { call } from "./api.js";
import { ask } from "./dialog.js";
import { element } from "./dom.js";
import { keep } from "./order-store.js";
import { steps } from "./saga.js";

// The address is final once the shipment is next.
const isNext = (name, { status }) => steps.some(({ step, starts_from }) => step === name && starts_from === status);
const ADDRESS = { name: "Name", street: "Street", city: "City", postal_code: "Postal code", country: "Country" };
const REASON = [{ name: "reason", label: "Reason (optional)" }];

/**
 * Returns the buttons, and `update(order)`. `report(problem)` shows why an action failed. If the button with the focus
 * disappears, the focus moves to `heading`.
 */
export function actionsFor(path, heading, report) {
  let order = null;
  const send = (method, action, body) => call(method, `${path}/${action}`, { body }).then(keep);
  const waits = () => order.cancellable && order.status === "awaiting_approval"; // a cancelled order no longer waits

  const actions = [
    button("Approve", "primary", waits, () => send("POST", "approval", { approved: true })),
    button("Reject", null, waits, () =>
      ask({
        title: "Reject this order?",
        fields: REASON,
        confirm: "Reject",
        tone: "danger",
        send: ({ reason }) => send("POST", "approval", { approved: false, reason: reason || null }),
      }),
    ),
    button("Change address", null, () => order.cancellable && !isNext("create_shipment", order), () =>
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
      report(null);
      act()
        .catch(report)
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

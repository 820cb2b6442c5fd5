// One order: its details, its saga and its actions.

import { call } from "./api.js";
import { announce, element, icon, setText, set, changeIcon } from "./dom.js";
import { inWords, money, statusOf, time } from "./format.js";
import { get, keep, onChange } from "./order-store.js";
import { load as loadSteps } from "./saga.js";
import { drawSaga } from "./saga-drawing.js";

const CANCELLABLE = ["placed", "awaiting_approval", "reserved", "charged"];
const QUERY_INTERVAL = 1000; // ms between two queries of the workflow, while the order shown is in progress

const pane = document.getElementById("order");
let shown = null; // the view of the order that is shown
let queryTimer = 0; // of the next query of the workflow

export const heading = () => pane.querySelector("h2");

/** Shows an order or, without an id, an example of a saga. */
export function show(orderId) {
  clearTimeout(queryTimer);
  shown = orderId && build(orderId);
  pane.replaceChildren(...(shown ? shown.parts : example()));
  if (!shown) return;
  if (get(orderId)) shown.update(get(orderId));
  loadOrder();
}

/** Fetches the table of steps and the order again: both may have changed while the stream was down. */
export async function load() {
  if (await loadSteps()) show(shown?.orderId);
  else await loadOrder();
}

async function loadOrder() {
  const view = shown;
  if (!view) return;
  try {
    keep(await call("GET", view.path));
    if (view === shown) queryWorkflow(view);
  } catch (problem) {
    view.report(problem);
  }
}

onChange((order, before) => {
  if (order.order_id !== shown?.orderId) return;
  shown.update(order);
  if (!before || before.status === order.status) return;
  announce(`Order of ${order.shipping_address.name}: ${statusOf(order).word}`);
  // The last answer of the workflow is about the previous step. Most steps are short, so the next query waits a moment.
  clearTimeout(queryTimer);
  queryTimer = setTimeout(queryWorkflow, QUERY_INTERVAL / 4, shown);
});

/** Queries the workflow for what MongoDB does not know: the attempt, and what it waits for. It may be unavailable. */
async function queryWorkflow(view) {
  const progress = document.hidden ? null : await call("GET", `${view.path}/status`).catch(() => null);
  const order = get(view.orderId);
  if (view !== shown || !order) return;
  view.update(order, progress);
  clearTimeout(queryTimer);
  if (!statusOf(order).final) queryTimer = setTimeout(queryWorkflow, QUERY_INTERVAL, view);
}

function example() {
  const saga = drawSaga();
  saga.update({ status: "none", steps: [] });
  return [
    element("h2", { tabindex: -1 }, "A saga"),
    element("p", { class: "note" }, "When a step fails for good, or the order is cancelled, the completed steps are compensated in reverse. Place an order, and watch."),
    saga.drawing,
  ];
}

function build(orderId) {
  const path = `/orders/${encodeURIComponent(orderId)}`;
  const sign = icon("inbox");
  const word = element("span");
  const badge = element("span", { class: "badge", hidden: true }, sign, word);
  const name = element("h2", { tabindex: -1 }, "Order");
  const facts = element("p", { class: "note" });
  const failure = element("p", { class: "failure", hidden: true });
  const problem = element("p", { class: "problem", role: "alert", hidden: true });
  const saga = drawSaga();
  const temporal = element("a", { target: "_blank", rel: "noopener", hidden: true }, "Open in Temporal ↗");
  const buttons = element("div", { class: "buttons" }, failure);
  const lines = element("ul");
  const address = element("address");

  /** Shows why an action failed, or hides that without a problem. */
  function report(failed) {
    setText(problem, failed?.message ?? "");
    problem.hidden = !failed;
  }

  function update(order, progress) {
    const status = statusOf(order);
    document.title = `${status.word}: ${orderId}`;
    badge.hidden = false;
    set(badge, "data-tone", status.tone);
    changeIcon(sign, status.icon);
    setText(word, status.word);
    const { name: person, street, postal_code, city, country } = order.shipping_address;
    setText(name, person);
    setText(facts, `${money(order.total)} · ${order.payment_method} · ${order.customer_id} · placed ${time(order.created_at)}`);
    // Between an accepted cancel and the first compensation, the status does not show the cancel yet.
    const { code, message } = order.failure ?? { code: "cancel_accepted", message: "completed steps will be compensated" };
    failure.hidden = !order.failure && (order.cancellable || !CANCELLABLE.includes(order.status));
    set(failure, "data-tone", order.failure ? status.tone : "off");
    failure.replaceChildren(element("b", {}, `${inWords(code)}:`), ` ${message}`);

    actions?.update(order);
    saga.update(order, progress);
    if (/^https?:/.test(progress?.workflow_url ?? "")) set(temporal, "href", progress.workflow_url);
    temporal.hidden = !temporal.href;

    if (!lines.children.length) lines.append(...order.lines.map(line));
    setText(address, `${person}\n${street}\n${postal_code} ${city}, ${country}`);
  }

  // The first view has no buttons and dialogs, so their code is loaded with the first order.
  let actions = null;
  import("./order-actions.js").then(({ actionsFor }) => {
    actions = actionsFor(path, name, report);
    buttons.prepend(...actions.buttons);
    if (get(orderId)) actions.update(get(orderId));
  });

  const parts = [
    element("a", { class: "back", href: "#/orders" }, "← Orders"),
    element("div", { class: "bar" }, name, badge),
    element("p", { class: "where" }, element("code", {}, orderId), temporal),
    facts,
    buttons,
    problem,
    saga.drawing,
    element("div", { class: "particulars" }, lines, address),
  ];
  return { orderId, path, parts, update, report };
}

function line({ name, quantity, unit_price: { amount, currency } }) {
  return element("li", {}, element("span", {}, `${quantity} × ${name}`), element("span", {}, money({ amount: amount * quantity, currency })));
}

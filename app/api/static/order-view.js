// One order: its details, its saga and its actions.

import { call } from "./api.js";
import { announce, element, icon, mayMove, setText, set, changeIcon } from "./dom.js";
import { inWords, money, sentence, payment, statusOf, time } from "./format.js";
import { actionsFor } from "./order-actions.js";
import { drawOrder } from "./order-drawing.js";
import { get, keep, onChange } from "./order-store.js";
import { playback } from "./playback.js";
import { askWorkflow } from "./saga.js";
import { load as loadSource, sourcePanel } from "./source-code.js";

const QUERY_INTERVAL = 1000; // ms between two queries of the workflow, while the order shown is in progress

const pane = document.getElementById("order");
let shown = null; // the view of the order that is shown
let queryTimer = 0; // of the next query of the workflow

export const heading = () => pane.querySelector("h2");

/** Shows an order or, without an id, none. */
export function show(orderId) {
  clearTimeout(queryTimer);
  shown?.stop();
  shown = orderId && build(orderId);
  pane.replaceChildren(...(shown ? shown.parts : []));
  if (!shown) return;
  if (get(orderId)) shown.update(get(orderId));
  loadOrder();
}

/** Fetches the order and the code again: both may have changed while the stream was down. */
export async function load({ isNewTable }) {
  if (!shown) return;
  if (isNewTable) return show(shown.orderId);
  await Promise.all([loadOrder(), loadSource()]);
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

/** Queries the workflow, which may be unavailable. */
async function queryWorkflow(view) {
  const progress = document.hidden ? null : await askWorkflow(view.orderId);
  const order = get(view.orderId);
  if (view !== shown || !order) return;
  view.update(order, progress);
  clearTimeout(queryTimer);
  if (!statusOf(order).final) queryTimer = setTimeout(queryWorkflow, QUERY_INTERVAL, view);
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
  const notice = element("p", { class: "notice", hidden: true });
  const saga = drawOrder();
  const source = sourcePanel();
  const player = playback(render);
  const replay = element("button", { type: "button", hidden: true, onclick: () => player.replay() }, "Replay");
  const temporal = element("a", { target: "_blank", rel: "noopener", hidden: true }, "Open in Temporal ↗");
  const buttons = element("div", { class: "buttons" }, failure);
  const lines = element("ul");
  const address = element("address");

  /** Shows why an action failed, or hides that without a problem. */
  function report(failed) {
    setText(problem, failed?.message ?? "");
    problem.hidden = !failed;
  }

  let progress = null; // the last answer of the workflow about this state of the order

  function update(order, newProgress = null) {
    progress = newProgress;
    actions.update(order);
    player.update(order);
  }

  /** Shows a version of the order; what the workflow says is about the last one. */
  function render(order, isLast) {
    const answer = isLast ? progress : null;
    const status = statusOf(order);
    document.title = `${status.word}: ${orderId}`;
    badge.hidden = false;
    set(badge, "data-tone", status.tone);
    changeIcon(sign, status.icon);
    setText(word, status.word);
    const { name: person, street, postal_code, city, country } = order.shipping_address;
    setText(name, person);
    setText(facts, `${money(order.total)} · ${payment(order)} · ${order.customer_id} · placed ${time(order.created_at)}`);
    // Between an accepted cancel and the first compensation, the status does not show the cancel yet.
    const { code, message } = order.failure ?? { code: "cancel_accepted", message: "completed steps will be compensated" };
    failure.hidden = !order.failure && (!order.cancel_requested || status.final);
    set(failure, "data-tone", order.failure ? status.tone : "off");
    const hasMore = inWords(code) !== sentence(message); // "Cancelled", and not "Cancelled: cancelled"
    failure.replaceChildren(element("b", {}, inWords(code) + (hasMore ? ":" : "")), hasMore ? ` ${message}` : "");

    setText(notice, noticeOf(order, answer));
    notice.hidden = !notice.textContent;
    set(notice, "data-tone", answer?.unavailable ? "wait" : "bad");
    saga.update(order, answer);
    if (isLast) replay.hidden = !mayMove() || !status.final || order.steps.length === 0;
    source.update(order);
    const url = order.workflow_url ?? progress?.workflow_url ?? "";
    if (/^https?:/.test(url)) set(temporal, "href", url);
    temporal.hidden = !temporal.href;

    if (!lines.children.length) lines.append(...order.lines.map(line));
    setText(address, `${person}\n${street}\n${postal_code} ${city}, ${country}`);
  }

  const actions = actionsFor(path, name, report);
  buttons.prepend(...actions.buttons, replay);

  const parts = [
    element("a", { class: "back", href: "#/orders" }, "← All orders"),
    element("div", { class: "bar" }, name, badge),
    element("p", { class: "where" }, element("code", {}, orderId), temporal),
    facts,
    buttons,
    problem,
    notice,
    element("div", { class: "beside" }, saga.drawing, source.panel),
    element("div", { class: "particulars" }, lines, address),
  ];
  return { orderId, path, parts, update, report, stop: player.stop };
}

/** Why an order does not go on, if it does not. */
function noticeOf(order, answer) {
  if (answer?.unavailable) return `${sentence(answer.unavailable)}. The order waits, and continues afterwards.`;
  const stuck = answer?.activities?.filter(({ compensates, last_failure }) => compensates && last_failure) ?? [];
  if (order.status !== "needs_attention" || !stuck.length) return "";
  return stuck.map(({ activity, last_failure }) => `${inWords(activity)} keeps failing: ${last_failure.message}.`).join(" ") + " It is retried until it succeeds.";
}

function line({ name, quantity, unit_price: { amount, currency } }) {
  return element("li", {}, element("span", {}, `${quantity} × ${name}`), element("span", {}, money({ amount: amount * quantity, currency })));
}

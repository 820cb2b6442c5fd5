// Draws the saga: the steps lead down on the left; where one fails, the path turns, and the compensations lead up on the
// right. The drawing is built once for each order; an update changes only what is different.

import { element, icon, setText, set, changeIcon } from "./dom.js";
import { after, statusOf, time } from "./format.js";
import { readSaga, steps as table } from "./saga.js";

/** Returns the drawing, and `update(order, progress)`, which shows the order's state. */
export function drawSaga() {
  const start = stop("Placed", "inbox");
  const end = stop("All compensated", "back");
  const approval = stop("Approval", "person");
  const steps = table.map(({ word, icon, compensation }) => ({ forward: stop(word, icon), back: compensation && stop(compensation, "back") }));
  const completed = stop("Completed", "flag");

  const startRow = row(start, end);
  // The path up leads past a step without a compensation; below the last compensation there is no path up.
  const last = table.findLastIndex(({ compensation }) => compensation);
  const past = () => ({ node: element("div", { class: "stop way" }) });
  const none = (index) => index === last + 1 && { node: element("p", { class: "stop none" }, "No compensation from here on") };
  const approvalRow = row(approval, past());
  const stepRows = steps.map(({ forward, back }, index) => row(forward, back || (index < last ? past() : none(index))));
  steps[last]?.back.node.classList.add("bottom");
  const rows = [startRow, approvalRow, ...stepRows, row(completed)];
  const drawing = element(
    "div",
    { class: "saga", hidden: !table.length },
    element("p", { "aria-hidden": "true" }, element("span", {}, "Steps ↓"), element("span", {}, "Compensations ↑")),
    element("ol", { "aria-label": "The saga of this order" }, ...rows),
  );

  let approved = false; // only the workflow knows it, and says it with each answer

  function update(order, progress) {
    approved = progress?.approved ?? approved;
    const saga = readSaga(order, progress);
    const { word, icon: sign, tone } = statusOf(order);
    const when = (at) => `${time(at)} ${after(order.created_at, at)}`;

    start.show(order.created_at ? "done" : "idle", order.created_at ? time(order.created_at) : "first");
    // Most orders need no approval: the row is shown only for those that wait or waited for it.
    const declined = order.failure?.code === "not_approved";
    approvalRow.hidden = !declined && !approved && order.status !== "awaiting_approval";
    if (declined) approval.show("failed", "not approved");
    else approval.show(approved ? "done" : "running", approved ? "approved" : "waits for a person");

    steps.forEach(({ forward, back }, index) => {
      const read = saga.steps[index];
      forward.show(read.forward.state, stepWords(read.forward, saga, when), read.forward.detail);
      back?.show(read.back.state, compensationWords(read, saga, when));
    });

    const ended = saga.back && !saga.live;
    if (ended) end.become(word, sign, tone);
    end.show(ended ? "ended" : "idle", ended ? when(order.updated_at) : saga.back ? "not yet" : "only if needed");
    const succeeded = order.status === "completed";
    completed.show(succeeded ? "done" : "idle", succeeded ? when(order.updated_at) : saga.back ? "not reached" : "not yet");

    // The path: down to the last step that began, across where the saga turned back, and up from there.
    const turn = saga.turn >= 0 ? stepRows[saga.turn] : saga.back && (declined ? approvalRow : startRow);
    const down = rows.findLastIndex((row) => !row.hidden && row.firstChild.dataset.state !== "idle");
    rows.forEach((row, index) => {
      set(row, "data-down", index < down);
      set(row, "data-turn", row === turn);
      set(row, "data-up", index < rows.indexOf(turn));
    });
  }

  return { drawing, update };
}

function stepWords({ state, at, attempt, attempts }, saga, when) {
  if (state === "idle") return saga.back ? "not reached" : "not yet";
  if (state === "running") return tries("running", attempt);
  const word = state === "compensated" ? "done" : state; // its compensation is shown beside it, on the right
  return `${word} ${when(at)}${attempts > 1 ? `, ${attempts} attempts` : ""}`;
}

function compensationWords({ forward, back: { state, at, attempt } }, saga, when) {
  if (state === "done") return `compensated ${when(at)}`;
  if (state === "due") return "to be compensated";
  if (state === "running") return tries("compensating", attempt);
  if (forward.state === "failed" || forward.state === "interrupted") return "nothing to compensate";
  return saga.back || !saga.live ? "not needed" : "only if needed";
}

const tries = (doing, attempt) => (attempt > 1 ? `${doing}, attempt ${attempt}` : doing);

/** The icon of a stop in a state; in any other state, its own. */
const SIGNS = { done: "check", failed: "cross", interrupted: "stop", compensated: "back" };

function stop(word, ownSign) {
  const sign = icon(ownSign);
  const title = element("b", {}, word);
  const words = element("span");
  const detail = element("span");
  const node = element("div", { class: "stop" }, element("span", { class: "dot" }, sign), element("div", {}, title, words, detail));
  return {
    node,
    show(state, text, more = "") {
      set(node, "data-state", state);
      changeIcon(sign, SIGNS[state] ?? ownSign);
      setText(words, text);
      setText(detail, more);
    },
    become(newWord, newSign, tone) {
      setText(title, newWord);
      ownSign = newSign;
      set(node, "data-tone", tone);
    },
  };
}

const row = (forward, back) => element("li", {}, forward.node, element("span", { class: "turn" }), back ? back.node : null);

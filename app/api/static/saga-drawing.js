// The saga as a drawing: the steps lead down on the left; where one fails, the way turns, and their undos lead up on the
// right. It is built once for each order and then moves: a change touches only what is different.

import { element, icon, say, set, turnInto } from "./dom.js";
import { after, statusOf, time } from "./format.js";
import { readSaga, STEPS } from "./saga.js";

/** Returns the drawing, and `update(order, progress)`, which draws it as it stands. */
export function drawSaga() {
  const start = stop("Placed", "inbox");
  const end = stop("All undone", "undo");
  const approval = stop("Approval", "person");
  const steps = STEPS.map(({ word, icon, undo }) => ({ forward: stop(word, icon), undo: undo && stop(undo, "undo") }));
  const completed = stop("Completed", "flag");

  const startRow = row(start, end);
  const approvalRow = row(approval, { node: element("div", { class: "stop way" }) });
  const stepRows = steps.map(({ forward, undo }) => row(forward, undo ?? { node: element("p", { class: "stop none" }, "No undo from here on") }));
  const rows = [startRow, approvalRow, ...stepRows, row(completed)];
  const drawing = element(
    "div",
    { class: "saga" },
    element("p", { "aria-hidden": "true" }, element("span", {}, "Steps ↓"), element("span", {}, "Undos ↑")),
    element("ol", { "aria-label": "The saga of this order" }, ...rows),
  );

  let approved = false; // only the workflow knows, and says it with each answer

  function update(order, progress) {
    approved = progress?.approved ?? approved;
    const saga = readSaga(order, progress);
    const { word, icon: sign, tone } = statusOf(order);
    const when = (at) => `${time(at)} ${after(order.created_at, at)}`;

    start.show(order.created_at ? "done" : "idle", order.created_at ? time(order.created_at) : "first");
    // Most orders never wait for a person: the row is there only for those that do or did.
    const declined = order.failure?.code === "not_approved";
    approvalRow.hidden = !declined && !approved && order.status !== "awaiting_approval";
    if (declined) approval.show("failed", "not approved");
    else approval.show(approved ? "done" : "running", approved ? "approved" : "waits for a person");

    steps.forEach(({ forward, undo }, index) => {
      const read = saga.steps[index];
      forward.show(read.forward.state, stepWords(read.forward, saga, when), read.forward.detail);
      undo?.show(read.undo.state, undoWords(read, saga, when), read.undo.detail);
    });

    const ended = saga.back && !saga.live;
    if (ended) end.become(word, sign, tone);
    end.show(ended ? "ended" : "idle", ended ? when(order.updated_at) : saga.back ? "not yet" : "only if needed");
    const succeeded = order.status === "completed";
    completed.show(succeeded ? "done" : "idle", succeeded ? when(order.updated_at) : saga.back ? "not reached" : "not yet");

    // The ways: down as far as the steps came, across where the saga turned, and from there up.
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

function stepWords({ state, at, attempt }, saga, when) {
  if (state === "idle") return saga.back ? "not reached" : "not yet";
  if (state === "undone") return "taken back";
  return state === "running" ? tries("running", attempt) : `${state} ${when(at)}`;
}

function undoWords({ forward, undo: { state, at, attempt } }, saga, when) {
  if (state === "done") return `undone ${when(at)}`;
  if (state === "due") return "to be undone";
  if (state === "running") return tries("undoing", attempt);
  if (forward.state === "failed") return "nothing to undo";
  return saga.back || !saga.live ? "not needed" : "only if needed";
}

const tries = (doing, attempt) => (attempt > 1 ? `${doing}, attempt ${attempt}` : doing);

/** What a stop's dot shows in a state; where nothing is said, its own sign. */
const SIGNS = { done: "check", failed: "cross", undone: "undo" };

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
      turnInto(sign, SIGNS[state] ?? ownSign);
      say(words, text);
      say(detail, more);
    },
    become(newWord, newSign, tone) {
      say(title, newWord);
      ownSign = newSign;
      set(node, "data-tone", tone);
    },
  };
}

const row = (forward, undo) => element("li", {}, forward.node, element("span", { class: "turn" }), undo?.node);

// The table of steps from the API, and the state of every step and compensation of an order. Nothing here touches the page,
// and a step that is added in Python needs no change here.

import { call, UNAVAILABLE } from "./api.js";
import { inWords, statusOf } from "./format.js";

/** The icons of known steps; all others have `step`. */
const ICONS = { reserve_inventory: "box", charge_payment: "card", create_shipment: "truck", send_confirmation: "mail" };

/** The steps in sequence: {step, starts_from, status, word, icon, compensation}, the compensation in words or null. */
export let steps = [];

/** Loads the table. Returns true if it has changed: a release may change it while the page is open. */
export async function load() {
  const before = JSON.stringify(steps);
  const rows = (await call("GET", "/saga")).steps;
  const words = ({ step, compensation }) => ({ word: inWords(step), icon: ICONS[step] ?? "step", compensation: compensation && inWords(compensation) });
  const loaded = rows.map((row) => ({ ...row, ...words(row) }));
  if (JSON.stringify(loaded) === before) return false;
  steps = loaded;
  return true;
}

/** Asks the workflow for what MongoDB does not know: the attempts, and what it waits for. Resolves to null if refused. */
export const askWorkflow = (orderId) =>
  call("GET", `/orders/${encodeURIComponent(orderId)}/status`).catch(({ type }) =>
    UNAVAILABLE[type] ? { unavailable: UNAVAILABLE[type] } : null,
  );

/**
 * Derives the state of each step from an order and, if there is one, the workflow's answer.
 *
 * Returns `{forward, back}` for each step, both `{state, at}`; `forward` also has `attempts`, `since` (the first attempt) and `detail`.
 * A step is idle, next, queued, running, waiting (for its next attempt), stuck, done, failed, interrupted or compensated;
 * its compensation is idle, due, next, queued, running, waiting, stuck or done. From `queued` to `stuck`, the state also
 * has `attempt`, `failure` and `nextAt`, or `unavailable`. `turn` is the index of the step at which the saga turned back.
 */
export function readSaga(order, progress) {
  const back = ["compensating", "needs_attention", "failed", "cancelled"].includes(order.status);
  const live = !statusOf(order).final;
  const activities = live ? progress?.activities ?? [] : [];
  const next = { state: progress?.unavailable ? "stuck" : "next", unavailable: progress?.unavailable };

  function runOf(step, compensates) {
    const found = activities.find((activity) => activity.step === step && activity.compensates === compensates);
    if (found?.state === "paused") return { state: "stuck", unavailable: "paused in Temporal" };
    return found && { state: found.state, attempt: found.attempt, failure: found.last_failure, nextAt: found.next_attempt_at };
  }

  const read = steps.map(({ step, starts_from, compensation }) => {
    const record = order.steps.find((entry) => entry.step === step) ?? {};
    const { status = "idle", interrupted, first_attempt_at: since, at, compensated_at, attempts, detail } = record;
    const isNext = live && !back && status === "idle" && order.status === starts_from;
    const isDue = back && live && status === "done" && compensation;
    const ended = { state: interrupted ? "interrupted" : status, since, at, attempts, detail };
    return {
      forward: (!back && status === "idle" && runOf(step, false)) || (isNext ? next : ended),
      back: status === "compensated" ? { state: "done", at: compensated_at } : runOf(step, true) ?? { state: isDue ? "due" : "idle" },
    };
  });

  // Compensations run in reverse: of those that are due, the last one is next.
  if (back && !read.some((each) => each.back.attempt)) {
    const last = read.findLast((each) => each.back.state === "due");
    if (last) last.back = next;
  }

  const turn = back ? read.findLastIndex(({ forward }) => forward.state !== "idle") : -1;
  return { steps: read, turn, back, live };
}

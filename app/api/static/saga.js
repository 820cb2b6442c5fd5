// The saga's table, as the API tells it, and what an order tells of it: the state of every step and of its compensation.
// Nothing here touches the page, and a step that is added in Python needs nothing here.

import { call } from "./api.js";
import { inWords, statusOf } from "./format.js";

/** An icon of its own for a step; `step` for all others. */
const ICONS = { reserve_inventory: "box", charge_payment: "card", create_shipment: "truck", send_confirmation: "mail" };

/** The steps in the saga's order: {step, starts_from, status, word, icon, compensation}, the compensation in words or null. */
export let steps = [];

/** Loads the table. Tells whether it differs from the one before: a release may have changed it while the page was open. */
export async function load() {
  const before = JSON.stringify(steps);
  const told = (await call("GET", "/saga")).steps;
  const words = ({ step, compensation }) => ({ word: inWords(step), icon: ICONS[step] ?? "step", compensation: compensation && inWords(compensation) });
  const loaded = told.map((row) => ({ ...row, ...words(row) }));
  if (JSON.stringify(loaded) === before) return false;
  steps = loaded;
  return true;
}

/**
 * Reads an order, together with the workflow's own answer where there is one (`progress`, from GET /orders/{id}/status).
 *
 * For each of `steps` `{forward, back}`, both `{state, at}` and, while running, `attempt`; a step also `{attempts, detail}`.
 * A step is idle, running, done, failed, interrupted or compensated, its compensation idle, due, running or done. `turn` is
 * the index of the step at which the saga turned back.
 */
export function readSaga(order, progress) {
  const back = ["compensating", "needs_attention", "failed", "cancelled"].includes(order.status);
  const live = !statusOf(order).final;
  const attempt = progress?.attempt;

  const read = steps.map(({ step, starts_from, compensation }) => {
    const { status = "idle", interrupted, at, compensated_at, attempts, detail } = order.steps.find((entry) => entry.step === step) ?? {};
    const runs = live && !back && status === "idle" && (progress?.step ? progress.step === step : order.status === starts_from);
    const due = back && live && status === "done" && compensation;
    return {
      forward: runs ? { state: "running", attempt } : { state: interrupted ? "interrupted" : status, at, attempts, detail },
      back: status === "compensated" ? { state: "done", at: compensated_at } : { state: due ? "due" : "idle" },
    };
  });

  // Compensations run in reverse: of those that are due, the last one is at work.
  const compensating = read.findLast(({ back }) => back.state === "due");
  if (compensating) compensating.back = { state: "running", attempt };

  const turn = back ? read.findLastIndex(({ forward }) => forward.state !== "idle") : -1;
  return { steps: read, turn, back, live };
}

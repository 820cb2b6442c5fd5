// The table of steps from the API, and the state of every step and compensation of an order. Nothing here touches the page,
// and a step that is added in Python needs no change here.

import { call } from "./api.js";
import { inWords, statusOf } from "./format.js";

/** The icons of known steps; all others have `step`. */
const ICONS = { reserve_inventory: "box", charge_payment: "card", create_shipment: "truck", send_confirmation: "mail" };

/** The steps in the saga's order: {step, starts_from, status, word, icon, compensation}, the compensation in words or null. */
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

/**
 * Derives the state of each step from an order and, if there is one, the workflow's answer (GET /orders/{id}/status).
 *
 * Returns `{forward, back}` for each step, both `{state, at}` and, while running, `attempt`; `forward` also has `attempts`
 * and `detail`. A step is idle, running, done, failed, interrupted or compensated, its compensation idle, due, running or done. `turn` is
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

  // Compensations run in reverse: of those that are due, the last one is running.
  const compensating = read.findLast(({ back }) => back.state === "due");
  if (compensating) compensating.back = { state: "running", attempt };

  const turn = back ? read.findLastIndex(({ forward }) => forward.state !== "idle") : -1;
  return { steps: read, turn, back, live };
}

// What an order tells about its saga: the state of every step and of its undo. Nothing here touches the page.
// A step added to app/workflows/order.py is one line more in STEPS.

import { statusOf } from "./format.js";

export const STEPS = [
  { step: "reserve_inventory", after: "placed", word: "Reserve stock", undo: "Release stock", icon: "box" },
  { step: "charge_payment", after: "reserved", word: "Charge payment", undo: "Refund payment", icon: "card" },
  { step: "create_shipment", after: "charged", word: "Create shipment", undo: "Cancel shipment", icon: "truck" },
  { step: "send_confirmation", after: "shipped", word: "Send confirmation", undo: null, icon: "mail" },
];

/**
 * Reads an order, together with the workflow's own answer where there is one (`progress`, from GET /orders/{id}/status).
 *
 * For each of STEPS `{forward, undo}`, both `{state, at, detail, attempt}`. A step is idle, running, done,
 * failed or undone, an undo idle, due, running or done. `turn` is the index of the step at which the saga turned back.
 */
export function readSaga(order, progress) {
  const back = ["compensating", "needs_attention", "failed", "cancelled"].includes(order.status);
  const live = !statusOf(order).final;
  const attempt = progress?.attempt;

  const steps = STEPS.map(({ step, after }) => {
    const { status = "idle", at, detail } = order.steps.find((entry) => entry.step === step) ?? {};
    if (status === "undone") return { forward: { state: "undone" }, undo: { state: "done", at, detail } };
    const runs = live && !back && status === "idle" && (progress?.step ? progress.step === step : order.status === after);
    return {
      forward: runs ? { state: "running", attempt } : { state: status, at, detail },
      undo: { state: back && live && status === "done" ? "due" : "idle" },
    };
  });

  // Undos run in reverse: of those that are due, the last one is at work.
  const undoing = steps.findLast(({ undo }) => undo.state === "due");
  if (undoing) undoing.undo = { state: "running", attempt };

  const turn = back ? steps.findLastIndex(({ forward }) => forward.state !== "idle") : -1;
  return { steps, turn, back, live };
}

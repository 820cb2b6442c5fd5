// Plays the changes of an order one after the other, because most orders are faster than the eye.

import { mayMove } from "./dom.js";
import { steps as table } from "./saga.js";

const PACE = 250; // ms that each version is shown for at least, while the order is in progress
const REPLAY_PACE = 700;
const JUST_NOW = 3000; // ms; an order that was placed longer ago is shown as it is

/**
 * Returns `update(order)`, which calls `show(version, isLast)` for each version that was not shown yet, and `replay()`.
 * The last version is always the order itself, and the first that is shown of an order that is not new.
 */
export function playback(show) {
  let versions = [];
  let at = -1; // the index of the version that is shown
  let timer = 0; // until the next one
  let pace = PACE;

  function next() {
    timer = 0;
    if (at === versions.length - 1) return (pace = PACE);
    at = mayMove() ? at + 1 : versions.length - 1;
    show(versions[at], at === versions.length - 1);
    timer = setTimeout(next, pace);
  }

  return {
    update(order) {
      versions = versionsOf(order);
      const last = versions.length - 1;
      const isNew = Date.now() - Date.parse(order.created_at) < JUST_NOW;
      if (!mayMove() || (at < 0 && !isNew)) {
        clearTimeout(timer);
        timer = 0;
        at = last;
      }
      at = Math.min(at, last);
      if (at === last) show(order, true); // also when something else than the steps has changed
      else if (!timer) next();
    },
    replay() {
      clearTimeout(timer);
      at = -1;
      pace = REPLAY_PACE;
      next();
    },
    stop: () => clearTimeout(timer),
  };
}

/** The order as it was after each step and each compensation, from the times in their records. */
export function versionsOf(order) {
  const times = order.steps.flatMap(({ at, compensated_at }) => [at, compensated_at ?? at]).map((at) => Date.parse(at));
  const moments = [...new Set(times)].sort((a, b) => a - b);
  const earlier = [Date.parse(order.created_at) - 1, ...moments.slice(0, -1)];
  return moments.length ? [...earlier.map((moment) => asOf(order, moment)), order] : [order];
}

function asOf(order, moment) {
  const isPast = (at) => at && Date.parse(at) <= moment;
  const steps = order.steps
    .filter(({ at }) => isPast(at))
    .map((record) => (record.compensated_at && !isPast(record.compensated_at) ? { ...record, status: "done", compensated_at: null } : record));
  const hasTurned = steps.some(({ status }) => status !== "done");
  const last = table.findLast(({ step }) => steps.some((record) => record.step === step));
  const updated_at = new Date(Math.max(moment, Date.parse(order.created_at))).toISOString();
  const status = hasTurned ? "compensating" : last?.status ?? "placed";
  return { ...order, steps, status, failure: hasTurned ? order.failure : null, cancel_requested: false, updated_at };
}

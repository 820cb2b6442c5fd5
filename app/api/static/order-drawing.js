// The drawing of one order. It is built once for each order; an update changes only what is different.

import { after, countdown, statusOf, time } from "./format.js";
import { readSaga } from "./saga.js";
import { drawSaga } from "./saga-drawing.js";
import { legend, timeBars } from "./time-bars.js";

/** Returns the drawing, and `update(order, progress)`, which shows the order's state. */
export function drawOrder() {
  const { drawing, start, approval, steps, completed, end, showApproval, path } = drawSaga();
  drawing.append(legend());
  let approved = false; // only the workflow knows it, and says it with each answer

  function update(order, progress) {
    approved = progress?.approved ?? approved;
    const saga = readSaga(order, progress);
    const when = (at) => `${time(at)} ${after(order.created_at, at)}`;

    start.show("done", time(order.created_at));
    // Most orders need no approval: the row is shown only for those that wait or waited for it.
    const declined = order.failure?.code === "not_approved";
    const waits = order.status === "awaiting_approval";
    showApproval(declined || approved || waits);
    if (declined) approval.show("failed", "not approved");
    else if (!waits) approval.show("done", "approved");
    else approval.show("waiting", approvalWords(progress));

    const bars = timeBars(order, saga);
    steps.forEach(({ forward, back }, index) => {
      const read = saga.steps[index];
      forward.show(read.forward.state, stepWords(read.forward, saga, when), read.forward.detail ?? lastFailure(read.forward));
      forward.put(bars[index].forward);
      back?.show(read.back.state, compensationWords(read, saga, when), lastFailure(read.back));
      back?.put(bars[index].back);
    });

    const ended = saga.back && !saga.live;
    const { word, icon: sign, tone } = statusOf(order);
    if (ended) end.become(word, sign, tone);
    end.show(ended ? "ended" : "idle", ended ? when(order.updated_at) : saga.back ? "not yet" : saga.live ? "only if needed" : "not needed");
    const succeeded = order.status === "completed";
    completed.show(succeeded ? "done" : "idle", succeeded ? when(order.updated_at) : saga.back ? "not reached" : "not yet");
    path(saga.back ? steps[saga.turn]?.forward ?? (declined ? approval : start) : null);
  }

  return { drawing, update };
}

function stepWords(forward, saga, when) {
  const { state, at, attempts } = forward;
  if (state === "idle") return saga.back ? "not reached" : "not yet";
  const run = runWords(forward, "running");
  if (run) return run;
  const word = state === "compensated" ? "done" : state; // its compensation is shown beside it, on the right
  return `${word} ${when(at)}${attempts > 1 ? `, ${attempts} attempts` : ""}`;
}

function compensationWords({ forward, back }, saga, when) {
  if (back.state === "done") return `compensated ${when(back.at)}`;
  if (back.state === "due") return "to be compensated";
  const run = runWords(back, "compensating");
  if (run) return run;
  if (forward.state === "failed" || forward.state === "interrupted") return "nothing to compensate";
  return saga.back || !saga.live ? "not needed" : "only if needed";
}

/** What an activity does now; it runs only while an attempt runs. */
function runWords(run, doing) {
  const { state, attempt, unavailable } = run;
  if (state === "running") return attempt > 1 ? `${doing}, attempt ${attempt}` : doing;
  if (state === "waiting") return `${failed(run)}; next ${untilThen(run.nextAt)}`;
  if (state === "queued") return `attempt ${attempt} waits for a worker`;
  return { next: "next", stuck: unavailable }[state];
}

const failed = ({ attempt, failure }) => `attempt ${attempt - 1} failed${failure ? `: ${failure.message}` : ""}`;

/** Beside an attempt that runs, why the one before failed. */
const lastFailure = (run) => (run.state === "running" && run.attempt > 1 ? failed(run) : "");

function approvalWords(progress) {
  if (progress?.unavailable) return `waits for a person; ${progress.unavailable}`;
  const until = progress?.waiting_until;
  return until ? `waits for a person until ${time(until)}` : "waits for a person";
}

function untilThen(at) {
  const ms = Date.parse(at) - Date.now();
  return ms > 0 ? `in ${countdown(ms)}` : "now";
}

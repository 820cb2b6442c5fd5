// The drawing of a saga: the steps lead down on the left; the compensations lead up on the right. `board` fills it with the
// numbers of all orders, `order-drawing` with the state of one.

import { element, flash, icon, setText, set, changeIcon } from "./dom.js";
import { steps as table } from "./saga.js";

/** Returns `drawing`, its stops, and `path(turn)`. Two lists, because a screen reader reads one after the other. */
export function drawSaga() {
  const start = stop("Placed", "inbox");
  const approval = stop("Approval", "person");
  const completed = stop("Completed", "flag");
  const end = stop("All compensated", "back");
  const steps = table.map(({ word, icon, compensation }) => ({ forward: stop(word, icon), back: compensation && stop(compensation, "back") }));

  // The path up leads past what has no compensation; below the last compensation there is none.
  const last = table.findLastIndex(({ compensation }) => compensation);
  const down = [start, approval, ...steps.map(({ forward }) => forward), completed].map(({ node }) => node);
  const up = [end.node, past(), ...steps.slice(0, last + 1).map(({ back }) => back?.node ?? past())];
  up.at(-1).classList.add("bottom");
  down.forEach((node, row) => node.style.setProperty("grid-row", row + 1));
  up.forEach((node, row) => node.style.setProperty("grid-row", row + 1));
  const none = element("li", { class: "stop none" }, "No compensation from here on");
  none.style.setProperty("grid-row", up.length + 1);

  const drawing = element(
    "div",
    { class: "saga", hidden: !table.length },
    element("p", { "aria-hidden": "true" }, element("b", {}, "Steps ↓")),
    element("p", { "aria-hidden": "true" }, element("b", {}, "Compensations ↑")),
    element("ol", { class: "down", "aria-label": "Steps" }, ...down),
    element("ol", { class: "up", "aria-label": "Compensations" }, ...(last < table.length - 1 ? [none] : []), ...up.toReversed()),
  );
  drawing.style.setProperty("grid-template-rows", `auto repeat(${down.length}, auto)`);

  /** Hides the row of the approval, or shows it. */
  function showApproval(isShown) {
    approval.node.hidden = !isShown;
    up[1].hidden = !isShown;
  }

  /** Draws the path: down to the last step that began, across at the stop `turn`, if any, and up from there. */
  function path(turn) {
    const from = down.indexOf(turn?.node);
    const reached = down.findLastIndex((node) => !node.hidden && node.dataset.state !== "idle");
    down.forEach((node, row) => {
      set(node, "data-down", row < reached);
      set(node, "data-turn", row === from);
    });
    up.forEach((node, row) => set(node, "data-up", row < from));
  }

  return { drawing, start, approval, steps, completed, end, showApproval, path };
}

const past = () => element("li", { class: "stop way", "aria-hidden": "true" });

/** The icon of a stop in a state; in any other state, its own. */
const SIGNS = { done: "check", failed: "cross", interrupted: "stop", compensated: "back", waiting: "clock", queued: "clock", stuck: "pause" };

function stop(word, ownSign) {
  const sign = icon(ownSign);
  const title = element("b", {}, word);
  const words = element("span");
  const detail = element("span");
  const dot = element("span", { class: "dot" }, sign);
  const node = element("li", { class: "stop" }, dot, element("div", {}, title, words, detail));
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
    lightUp: () => flash(dot),
    /** Puts something below the words, in place of what was there. */
    put(below) {
      const before = detail.nextSibling;
      if (before && below?.isEqualNode(before)) return;
      before?.remove();
      if (below) detail.after(below);
    },
  };
}

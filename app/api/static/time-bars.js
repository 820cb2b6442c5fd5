// A bar for each step, on the time of the whole order: the wait before its first attempt, then its attempts. Beside it, for
// a compensation, the time during which the step was in effect.

import { element, svgElement } from "./dom.js";
import { duration } from "./format.js";

const KINDS = { wait: "waits", work: "one attempt", tries: "several attempts", effect: "in effect" };
const WIDTH = 1000; // units of a bar
const NARROWEST = 8; // so that the shortest time can be seen

/** Returns `{forward, back}` for each step of a saga that was read: a bar, or null before the step has begun. */
export function timeBars(order, { steps, live }) {
  const begin = Date.parse(order.created_at);
  const end = Math.max(live ? Date.now() : Date.parse(order.updated_at), begin + 1);
  const ms = (at) => Math.min(Math.max(Date.parse(at), begin), end);

  let before = begin;
  return steps.map(({ forward: { state, at, since, attempts }, back }) => {
    if (["idle", "next", "queued", "stuck"].includes(state)) return { forward: null, back: null };
    const done = at ? ms(at) : end;
    const first = Math.min(since ? ms(since) : at ? done : before, done);
    const wait = { kind: "wait", from: before, to: Math.max(before, first) };
    const work = { kind: at && attempts < 2 ? "work" : "tries", from: Math.max(before, first), to: done };
    const parts = since || !at ? [wait, work] : [wait];
    const tried = attempts > 1 ? `${attempts} attempts` : "1 attempt";
    const words = since ? `waited ${duration(wait.to - wait.from)}, ${tried} in ${duration(work.to - work.from)}` : `${state} ${at ? "after" : "for"} ${duration(done - before)}`;
    before = Math.max(before, done);
    const effect = back.at && { kind: "effect", from: done, to: ms(back.at) };
    return { forward: bar(parts, words), back: effect && bar([effect], `in effect for ${duration(effect.to - done)}`) };
  });

  function bar(parts, words) {
    const scale = WIDTH / (end - begin);
    const drawn = parts
      .filter(({ kind, from, to }) => kind !== "wait" || to > from)
      .map(({ kind, from, to }) => {
        const width = Math.max(NARROWEST, (to - from) * scale);
        return svgElement("rect", { class: kind, x: Math.min((from - begin) * scale, WIDTH - width), width, height: 4 });
      });
    const options = { class: "time", viewBox: `0 0 ${WIDTH} 4`, preserveAspectRatio: "none", role: "img", "aria-label": words };
    return svgElement("svg", options, svgElement("title", {}, words), ...drawn);
  }
}

export function legend() {
  const sample = (kind) => svgElement("svg", { "aria-hidden": "true" }, svgElement("rect", { class: kind, width: "100%", height: "100%" }));
  const entries = Object.entries(KINDS).map(([kind, words]) => element("span", {}, sample(kind), words));
  return element("p", { class: "legend", "aria-hidden": "true" }, ...entries);
}

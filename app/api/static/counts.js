// The number of orders in each status: above the list as a filter, and on the board.

import { call } from "./api.js";
import { element, setText, set } from "./dom.js";
import { statusOf, STATUSES } from "./format.js";
import { onChange } from "./order-store.js";

const DELAY = 1000; // ms between a change and the next count: many orders may change at the same time

const filter = document.getElementById("filter");
const chips = new Map(); // status, or "" for all of them: { label, number }
const listeners = [];
let timer = 0;

/** Calls `listener({ by_status, maximum })` for each count; with null if there is none. */
export const onCount = (listener) => listeners.push(listener);

/** The status that is chosen above the list, or "". */
export const chosenStatus = () => filter.querySelector(":checked").value;

/** In words; the API counts up to a maximum. */
export const counted = (number, { maximum }) => (number < maximum ? number.toLocaleString() : `${maximum.toLocaleString()}+`);

export async function load() {
  clearTimeout(timer);
  timer = 0;
  const counts = await call("GET", "/orders/counts").catch(() => null);
  const statuses = counts?.by_status ?? {};
  for (const status of Object.keys(statuses)) if (!chips.has(status)) add(status);
  for (const [status, { label, number }] of chips) {
    const count = status ? statuses[status] ?? 0 : Object.values(statuses).reduce((sum, each) => sum + each, 0);
    setText(number, counts ? counted(count, counts) : "");
    set(number, "data-tone", count ? null : "off");
    if (status && (count || !counts)) label.hidden = false; // and stays, so that the list does not jump
  }
  for (const listener of listeners) listener(counts);
}

onChange((order, before) => {
  if (before?.status !== order.status) timer ||= setTimeout(load, DELAY);
});

function add(status) {
  const { word, tone } = status ? statusOf({ status }) : { word: "All" };
  const number = element("span");
  const input = element("input", { type: "radio", name: "status", value: status, checked: !status });
  const label = element("label", { "data-tone": tone, hidden: !!status }, input, word, " ", number);
  chips.set(status, { label, number });
  filter.append(label);
}

["", ...Object.keys(STATUSES)].forEach(add);

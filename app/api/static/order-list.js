// The list of orders: newest first, live, filtered by status; scrolling loads older ones.

import { call } from "./api.js";
import { chosenStatus } from "./counts.js";
import { element, flash, icon, notify, setText, set, changeIcon } from "./dom.js";
import { money, statusOf, time } from "./format.js";
import { get, keep, linkTo, onChange } from "./order-store.js";

const PAGE = 30;

const list = document.getElementById("order-list");
const filter = document.getElementById("filter");
const older = document.getElementById("older");
const empty = document.getElementById("no-orders");

const rows = new Map(); // order id: the row and its parts
let cursor = null; // where the next older page begins; null at the end
let oldest = Infinity; // created_at, in ms, of the oldest order that was loaded
let unseen = new Set(); // rows that the current reload has not seen yet
let loading = new AbortController();
let selected = null;

const createdAt = (order) => Date.parse(order.created_at);

/** Loads the newest orders, back to the oldest one on the page. Called again after a lost connection. */
export async function load() {
  loading.abort();
  loading = new AbortController();
  unseen = new Set(rows.keys());
  const until = oldest;
  const { signal } = loading;
  cursor = null;
  try {
    do await loadPage(signal);
    while (cursor && until < oldest);
  } catch (problem) {
    if (signal.aborted) return; // superseded by another load
    throw problem;
  }
  // Orders that the API no longer lists under this filter: their events were missed.
  for (const orderId of unseen) remove(orderId);
}

async function loadPage(signal) {
  const query = new URLSearchParams({ limit: PAGE });
  if (chosenStatus()) query.set("status", chosenStatus());
  if (cursor) query.set("cursor", cursor);
  const { items, next_cursor } = await call("GET", `/orders?${query}`, { signal });
  cursor = next_cursor;
  if (items.length) oldest = createdAt(items.at(-1));
  for (const order of items) {
    keep(order);
    show(get(order.order_id));
  }
  older.hidden = !cursor;
  empty.hidden = false; // from now on, it shows while the list is empty
}

const showLoadError = (problem) => problem.name === "AbortError" || notify(`The orders could not be loaded. ${problem.message}`);

/** Begins anew with the newest orders. */
export function restart() {
  for (const orderId of [...rows.keys()]) remove(orderId);
  oldest = Infinity;
  load().catch(showLoadError);
}

filter.addEventListener("change", restart);

let loadingOlder = false;
older.addEventListener("click", async () => {
  if (loadingOlder) return;
  loadingOlder = true;
  await loadPage(loading.signal).then(observeAgain, showLoadError);
  loadingOlder = false;
});
const nearEnd = new IntersectionObserver(([entry]) => entry.isIntersecting && older.click(), {
  root: list.parentElement,
  rootMargin: "600px",
});
nearEnd.observe(older);

/** Observes again: the observer reports only changes, and fast scrolling may reach the end before it has looked. */
function observeAgain() {
  nearEnd.unobserve(older);
  nearEnd.observe(older);
}

onChange((order, before) => {
  const beyond = cursor && createdAt(order) < oldest; // a later page will load it
  if (chosenStatus() && order.status !== chosenStatus()) remove(order.order_id);
  else if (rows.has(order.order_id) || !beyond) show(order, before && before.status !== order.status);
});

function show(order, lightUp = false) {
  unseen.delete(order.order_id);
  let row = rows.get(order.order_id);
  if (!row) {
    row = build(order);
    rows.set(order.order_id, row);
    insert(row);
  }
  const { word, icon: sign, tone } = statusOf(order);
  set(row.badge, "data-tone", tone);
  changeIcon(row.sign, sign);
  setText(row.word, word);
  setText(row.name, order.shipping_address.name);
  if (lightUp) flash(row.link);
}

function build(order) {
  const row = { createdAt: createdAt(order), sign: icon("inbox"), word: element("span"), name: element("b") };
  row.badge = element("span", { class: "badge" }, row.sign, row.word);
  row.link = element(
    "a",
    { href: linkTo(order), tabindex: rows.size ? -1 : 0, "aria-current": order.order_id === selected && "true" },
    row.name,
    row.badge,
    element("span", { class: "lines" }, order.lines.map(({ quantity, name }) => `${quantity} × ${name}`).join(", ")),
    element("span", {}, money(order.total)),
    element("code", {}, order.order_id),
    element("time", { datetime: order.created_at }, time(order.created_at)),
  );
  row.item = element("li", {}, row.link);
  row.item.row = row;
  return row;
}

/** Tries both ends before the walk: a new order goes to the top, and an older page to the end. */
function insert(row) {
  const last = list.lastElementChild;
  if (!last || last.row.createdAt >= row.createdAt) return list.append(row.item);
  let next = list.firstElementChild;
  while (next.row.createdAt > row.createdAt) next = next.nextElementSibling;
  next.before(row.item);
}

function remove(orderId) {
  const row = rows.get(orderId);
  if (!row) return;
  if (row.link.tabIndex === 0) setTabStop(row.item.nextElementSibling ?? row.item.previousElementSibling);
  row.item.remove();
  rows.delete(orderId);
}

/** Marks the order that is shown beside the list. */
export function select(orderId) {
  set(rows.get(selected)?.link ?? list, "aria-current", null);
  selected = orderId;
  const row = rows.get(orderId);
  if (!row) return;
  set(row.link, "aria-current", "true");
  setTabStop(row.item);
}

// One tab stop for the whole list, and arrow keys within it, instead of 500 tab stops.
function setTabStop(item) {
  const before = list.querySelector("[tabindex='0']");
  if (before) before.tabIndex = -1;
  if (item) item.row.link.tabIndex = 0;
}

list.addEventListener("keydown", (event) => {
  const item = event.target.closest("li");
  const next = {
    ArrowDown: item?.nextElementSibling,
    ArrowUp: item?.previousElementSibling,
    Home: list.firstElementChild,
    End: list.lastElementChild,
  }[event.key];
  if (!next) return;
  event.preventDefault();
  setTabStop(next);
  next.row.link.focus();
});

// The board: all orders in progress at their steps and compensations, the totals at the ends, and the stock.

import { call } from "./api.js";
import { counted, onCount } from "./counts.js";
import { element, flash, setText, set } from "./dom.js";
import { sentence, STATUSES } from "./format.js";
import { keep, onChange, openOrders } from "./order-store.js";
import { askWorkflow, readSaga } from "./saga.js";
import { drawSaga } from "./saga-drawing.js";
import * as stock from "./stock.js";

const PATIENCE = 3000; // ms without a change, after which the workflow of an order is asked
const OPEN = Object.keys(STATUSES).filter((status) => !STATUSES[status].final);
const MAX_DOTS = 10; // of the orders at one stop
const MAX_PRODUCTS = 8;

const pane = document.getElementById("board");
const trouble = document.getElementById("trouble");
const shelf = document.getElementById("stock");
const products = new Map(); // sku: the parts of its row
let board = null;
let counts = null;
let timer = 0;

const isShown = () => pane.checkVisibility() && !document.hidden;

/** Draws the table of steps, if it has changed, and loads the orders in progress, which may be older than those in the list. */
export async function load(isNewTable) {
  if (isNewTable) {
    board?.drawing.remove();
    board = drawSaga();
    shelf.before(board.drawing);
  }
  const query = OPEN.map((status) => `status=${status}`).join("&");
  const { items } = await call("GET", `/orders?${query}&limit=200`);
  for (const order of items) keep(order);
  update();
}

function update() {
  timer = 0;
  if (!board) return;
  const here = { approval: [], forward: board.steps.map(() => []), back: board.steps.map(() => []) };
  for (const { order } of openOrders()) {
    if (order.status === "awaiting_approval") here.approval.push(order);
    readSaga(order).steps.forEach(({ forward, back }, index) => {
      if (forward.state === "next") here.forward[index].push(order);
      if (back.state === "next") here.back[index].push(order);
    });
  }
  showOrders(board.approval, here.approval, "waiting");
  board.steps.forEach(({ forward, back }, index) => {
    showOrders(forward, here.forward[index], "here");
    if (back) showOrders(back, here.back[index], "here");
  });
  showTotals();
}

function showOrders(stop, orders, state) {
  const stuck = orders.filter(({ status }) => status === "needs_attention").length;
  const dots = "●".repeat(Math.min(orders.length, MAX_DOTS)) + (orders.length > MAX_DOTS ? "…" : "");
  const words = orders.length ? inOrders(orders.length) : "none";
  if (stuck) stop.show("failed", `${words}, ${stuck} need${stuck > 1 ? "" : "s"} attention`);
  else stop.show(orders.length ? state : "idle", words);
  stop.put(orders.length ? element("span", { class: "dots", "aria-hidden": "true" }, dots) : null);
}

const inOrders = (count, limits = { maximum: Infinity }) => `${counted(count, limits)} order${count === 1 ? "" : "s"}`;

function showTotals() {
  const { by_status: number = {} } = counts ?? {};
  const all = Object.values(number).reduce((sum, each) => sum + each, 0);
  board.start.show("total", counts ? inOrders(all, counts) : "");
  board.completed.show("total", counts ? inOrders(number.completed, counts) : "");
  board.end.show("total", counts ? `${counted(number.failed, counts)} failed, ${counted(number.cancelled, counts)} cancelled` : "");
}

onCount((newCounts) => {
  counts = newCounts;
  if (board) showTotals();
});

onChange((order, before) => {
  timer ||= setTimeout(update, 100); // many orders may change at the same time
  if (!board || !before || !isShown()) return;
  // Orders are fast: light up each stop that this one has passed.
  const [now, then] = [readSaga(order), readSaga(before)];
  board.steps.forEach(({ forward, back }, index) => {
    if (now.steps[index].forward.at !== then.steps[index].forward.at) forward.lightUp();
    if (now.steps[index].back.at !== then.steps[index].back.at) back?.lightUp();
  });
});

/** Calls `listener(words)` when the worker, Temporal or MongoDB does not answer; with null when all do. */
export function onTrouble(listener) {
  // The stream is up all the same. So ask about the order that has not changed for the longest time.
  setInterval(async () => {
    if (document.hidden) return;
    const [oldest] = openOrders().sort((a, b) => a.since - b.since);
    const isQuiet = oldest && performance.now() - oldest.since > PATIENCE;
    const answer = isQuiet ? await askWorkflow(oldest.order.order_id) : null;
    const words = answer?.unavailable ? sentence(answer.unavailable) : null;
    setText(trouble, words ? `${words}. The orders wait, and continue afterwards.` : "");
    trouble.hidden = !words;
    listener(words);
  }, PATIENCE);
}

stock.onChange((product, before) => {
  if (!products.has(product.sku) && products.size === MAX_PRODUCTS) return;
  if (!products.has(product.sku)) {
    const parts = { most: 0, name: element("span"), available: element("b"), bar: element("progress") };
    products.set(product.sku, parts);
    shelf.lastElementChild.append(element("li", {}, parts.name, parts.available, parts.bar));
  }
  const parts = products.get(product.sku);
  parts.most = Math.max(parts.most, product.available);
  setText(parts.name, product.name);
  setText(parts.available, product.available ? product.available.toLocaleString() : "sold out");
  set(parts.bar, "max", parts.most || 1);
  set(parts.bar, "value", product.available);
  set(parts.bar, "aria-label", `Stock of ${product.name}`);
  if (before && before.available !== product.available) flash(parts.available);
  shelf.hidden = false;
});

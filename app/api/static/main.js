// The order desk: wires the panes to the address bar and to the stream of events.

import * as board from "./board.js";
import * as counts from "./counts.js";
import { notify, setText, set } from "./dom.js";
import { follow } from "./live.js";
import * as orderList from "./order-list.js";
import { forget, keep, onChange } from "./order-store.js";
import { load as loadSteps } from "./saga.js";
import "./scenarios.js";
import * as stock from "./stock.js";

const connection = document.getElementById("connection");
const banner = document.getElementById("lost");
const [tryNow, useAnotherKey] = banner.querySelectorAll("button");

const pageTitle = document.title;

// The first view needs neither the view of one order nor the form: they are loaded when they are opened.
let orderView = null;
const own = document.getElementById("own");
own.addEventListener("toggle", () => own.open && import("./place-order.js"));

// The address bar selects the view: #/new, #/orders or #/orders/ord_…
async function route() {
  const [, view = "new", encodedId] = location.hash.split("/");
  const orderId = encodedId && decodeURIComponent(encodedId);
  document.body.dataset.view = orderId ? "order" : view === "orders" ? "orders" : "new";
  for (const link of document.querySelectorAll("nav a")) {
    set(link, "aria-current", link.hash === `#/${view || "new"}` && "page");
  }
  if (!orderId) document.title = pageTitle;
  orderList.select(orderId);
  if (orderId) orderView ??= await import("./order-view.js");
  if (!orderId || location.hash.endsWith(`/${encodedId}`)) orderView?.show(orderId);
}

addEventListener("hashchange", async () => {
  await route();
  // The focus moves to the view, unless the buttons and the form are still visible: the user may want to place another order.
  const { view } = document.body.dataset;
  const title = view === "order" ? orderView.heading() : document.getElementById(`${view}-title`);
  if (!document.activeElement.closest("#new")?.checkVisibility()) title?.focus();
});

function showConnection(tone, words) {
  set(connection, "data-tone", tone);
  setText(connection, words);
}

board.onTrouble((words) => {
  const isUp = ["good", "wait"].includes(connection.dataset.tone);
  if (isUp) showConnection(words ? "wait" : "good", words ?? "Live");
});

let lostAt = null; // when the connection was lost, in ms; null while it is up
let missed = 0; // orders that changed or were placed since
onChange((order, before) => (missed += before ? before.status !== order.status : Date.parse(order.created_at) > lostAt));

async function load() {
  const isNewTable = await loadSteps();
  await Promise.all([stock.load(), orderList.load(), orderView?.load({ isNewTable })]);
  await board.load(isNewTable);
  await counts.load();
}

const reconnect = follow("/orders/events", {
  handlers: {
    order(order) {
      const start = performance.now();
      keep(order, { isEvent: true });
      performance.measure("live update", { start });
      performance.clearMeasures("live update"); // observers have it, and the buffer must not grow
    },
    stock: stock.change,
    // This page was away for too long to be told what it has missed.
    reset() {
      forget();
      orderList.restart();
      orderView?.load({});
      counts.load();
    },
  },
  // The stream opens first, then the rest is loaded, then the events are handled, so that no change is missed.
  async opened() {
    await load();
    showConnection("good", "Live");
    banner.hidden = true;
    if (!lostAt) return;
    lostAt = null;
    notify(missed ? `Reconnected. ${missed} order${missed > 1 ? "s" : ""} changed in the meantime.` : "Reconnected. Nothing changed in the meantime.");
  },
  lost(problem) {
    const isRefused = [401, 403].includes(problem?.status);
    setText(banner.querySelector("p"), isRefused ? `Not connected. ${problem.message}` : "Connection lost: this page may be out of date. Trying to reconnect.");
    useAnotherKey.hidden = !isRefused;
    lostAt ??= Date.now();
    missed = 0;
    showConnection("bad", "Offline");
    banner.hidden = false;
  },
});

tryNow.addEventListener("click", reconnect);
useAnotherKey.addEventListener("click", async () => {
  const { askForKey } = await import("./api-key.js");
  if (await askForKey("It is kept until the tab is closed.")) reconnect();
});

route();

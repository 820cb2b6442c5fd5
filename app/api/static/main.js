// The order desk: wires the panes to the address bar and to the stream of events.

import { notify, setText, set } from "./dom.js";
import { follow } from "./live.js";
import * as orderList from "./order-list.js";
import { forget, keep, onChange } from "./order-store.js";
import * as orderView from "./order-view.js";
import "./place-order.js";
import { steps } from "./saga.js";
import * as stock from "./stock.js";

const connection = document.getElementById("connection");
const banner = document.getElementById("lost");
const [tryNow, useAnotherKey] = banner.querySelectorAll("button");

// The address bar selects the view: #/new, #/orders or #/orders/ord_…
function route() {
  const [, view = "new", orderId] = location.hash.split("/");
  document.body.dataset.view = orderId ? "order" : view === "orders" ? "orders" : "new";
  for (const link of document.querySelectorAll("nav a")) {
    set(link, "aria-current", link.hash === `#/${view || "new"}` && "page");
  }
  if (!orderId) document.title = "Order desk";
  orderList.select(orderId && decodeURIComponent(orderId));
  orderView.show(orderId && decodeURIComponent(orderId));
}

addEventListener("hashchange", () => {
  route();
  // The focus moves to the view, unless the form is still visible: the user may want to place another order.
  const { view } = document.body.dataset;
  const title = view === "order" ? orderView.heading() : document.getElementById(`${view}-title`);
  if (!document.activeElement.closest("#new")?.checkVisibility()) title.focus();
});

let lostAt = null; // when the connection was lost, in ms; null while it is up
let missed = 0; // orders that changed or were placed since
onChange((order, before) => (missed += before ? before.status !== order.status : Date.parse(order.created_at) > lostAt));

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
      orderView.load();
    },
  },
  // The stream opens first, then the rest is loaded, then the events are handled, so that no change is missed.
  async opened() {
    await Promise.all([stock.load(), orderList.load(), orderView.load()]);
    orderList.offer(steps.map(({ status }) => status));
    set(connection, "data-tone", "good");
    setText(connection, "Live");
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
    set(connection, "data-tone", "bad");
    setText(connection, "Offline");
    banner.hidden = false;
  },
});

tryNow.addEventListener("click", reconnect);
useAnotherKey.addEventListener("click", async () => {
  const { askForKey } = await import("./api-key.js");
  if (await askForKey("It is kept until the tab is closed.")) reconnect();
});

route();

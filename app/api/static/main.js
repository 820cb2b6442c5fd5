// The order desk: wires the panes to the address bar and to the stream of events.

import { notify, say, set } from "./dom.js";
import { follow } from "./live.js";
import * as orderList from "./order-list.js";
import { keep, onChange } from "./order-store.js";
import * as orderView from "./order-view.js";
import "./place-order.js";
import { steps } from "./saga.js";
import * as stock from "./stock.js";

const connection = document.getElementById("connection");
const banner = document.getElementById("lost");

// The address bar names what is shown: #/new, #/orders or #/orders/ord_…
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
  // Whoever chose something reads it next. Whoever still sees the form may want to place another order: the focus stays.
  const { view } = document.body.dataset;
  const title = view === "order" ? orderView.heading() : document.getElementById(`${view}-title`);
  if (!document.activeElement.closest("#new")?.checkVisibility()) title.focus();
});

let lostAt = null; // when the connection was lost, in ms; null while it is up
let missed = 0; // orders that changed or came since
onChange((order, before) => (missed += before ? before.status !== order.status : Date.parse(order.created_at) > lostAt));

const reconnect = follow("/orders/events", {
  handlers: {
    order(order) {
      const start = performance.now();
      keep(order, { isEvent: true });
      performance.measure("live update", { start });
      performance.clearMeasures("live update"); // observers have it, and the buffer must not grow
    },
    stock: stock.show,
  },
  // The stream is open first, then the rest is loaded, and then the events are looked at: nothing falls in between.
  async opened() {
    await Promise.all([stock.load(), orderList.load(), orderView.load()]);
    orderList.offer(steps.map(({ status }) => status));
    set(connection, "data-tone", "good");
    say(connection, "Live");
    banner.hidden = true;
    if (!lostAt) return;
    lostAt = null;
    notify(missed ? `Connected again. ${missed} order${missed > 1 ? "s" : ""} changed meanwhile.` : "Connected again. Nothing changed meanwhile.");
  },
  lost() {
    lostAt ??= Date.now();
    missed = 0;
    set(connection, "data-tone", "bad");
    say(connection, "Offline");
    banner.hidden = false;
  },
});

banner.querySelector("button").addEventListener("click", reconnect);

route();

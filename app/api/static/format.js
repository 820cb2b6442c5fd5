// Formats money, times and statuses.

/** The word, icon and colour of each status. An order in a final status no longer changes. */
export const STATUSES = {
  placed: { word: "Placed", icon: "inbox", tone: "run" },
  awaiting_approval: { word: "Awaiting approval", icon: "person", tone: "wait" },
  reserved: { word: "Reserved", icon: "box", tone: "run" },
  charged: { word: "Charged", icon: "card", tone: "run" },
  shipped: { word: "Shipped", icon: "truck", tone: "run" },
  completed: { word: "Completed", icon: "check", tone: "good", final: true },
  compensating: { word: "Compensating", icon: "back", tone: "back" },
  failed: { word: "Failed", icon: "cross", tone: "bad", final: true },
  cancelled: { word: "Cancelled", icon: "stop", tone: "off", final: true },
  needs_attention: { word: "Needs attention", icon: "alert", tone: "bad" },
};

/** A status that this page does not know yet is shown by its own name. */
export const statusOf = (order) => STATUSES[order.status] ?? { word: inWords(order.status), icon: "inbox", tone: "run" };

/** The sandbox's cards. A payment method of another service is shown by its own name. */
const CARDS = {
  pm_card_ok: "card that works",
  pm_card_declined: "card that is declined",
  pm_card_flaky: "card that fails twice",
  pm_card_slow: "card that takes 5 s",
  pm_card_outage: "card whose service is down",
};

export const payment = ({ payment_method }) => CARDS[payment_method] ?? payment_method;

const moneyFormats = new Map();

/** Formats minor units: 1299 EUR is €12.99, 1299 JPY is ¥1,299. */
export function money({ amount, currency }) {
  if (!moneyFormats.has(currency)) moneyFormats.set(currency, new Intl.NumberFormat(undefined, { style: "currency", currency }));
  const format = moneyFormats.get(currency);
  return format.format(amount / 10 ** format.resolvedOptions().maximumFractionDigits);
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });

/** The time of day, and the day unless it is today. */
export function time(timestamp) {
  const at = new Date(timestamp);
  return at.toDateString() === new Date().toDateString() ? clock.format(at) : `${day.format(at)}, ${clock.format(at)}`;
}

/** The time since `start`: +48 ms, +5.2 s, +3 min, +2 h. */
export const after = (start, end) => `+${duration(Math.max(0, new Date(end) - new Date(start)))}`;

/** 48 ms, 5.2 s, 3 min, 2 h. */
export function duration(ms) {
  if (ms < 1000) return `${ms}\u00a0ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)}\u00a0s`;
  if (ms < 3_600_000) return `${Math.round(ms / 60_000)}\u00a0min`;
  return `${Math.round(ms / 3_600_000)}\u00a0h`;
}

/** 0:38, 4:05, 1:00:00. */
export function countdown(ms) {
  const seconds = Math.ceil(ms / 1000);
  const two = (number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  return `${hours ? `${hours}:${two(minutes)}` : minutes}:${two(seconds % 60)}`;
}

/** out_of_stock: Out of stock. ReleaseInventory: Release inventory. */
export function inWords(code) {
  return sentence(code.replace(/_|(?<=[a-z])(?=[A-Z])/g, " ").toLowerCase());
}

/** Begins with a capital letter. */
export const sentence = (words) => words[0].toUpperCase() + words.slice(1);

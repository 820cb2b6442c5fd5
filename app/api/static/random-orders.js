// Places random orders at once, so that sagas end in every possible way.

import { call } from "./api.js";
import { keep } from "./order-store.js";

const CUSTOMERS = ["Ada Lovelace", "Alan Turing", "Barbara Liskov", "Edsger Dijkstra", "Grace Hopper", "Jiří Matoušek", "Kateryna Yushchenko", "Zoë Müller"];

// Weights: most payments and deliveries work.
const PAYMENTS = { pm_card_ok: 12, pm_card_declined: 2, pm_card_flaky: 2, pm_card_slow: 2, pm_card_outage: 1 };
const POSTAL_CODES = { 10115: 16, "00000": 2, 99999: 1 };

/** Resolves to the problems of the orders that were not placed. With a customer id, all are of this customer. */
export async function placeAtRandom(count, products, customerId) {
  const placing = Array.from({ length: count }, () =>
    call("POST", "/orders", { body: randomOrder(products, customerId), key: crypto.randomUUID() }).then(keep),
  );
  const results = await Promise.allSettled(placing);
  return results.filter(({ status }) => status === "rejected").map(({ reason }) => reason);
}

function randomOrder(products, customerId) {
  const name = any(CUSTOMERS);
  const customer = name.split(" ")[0].normalize("NFKD").replace(/[^a-z]/gi, "").toLowerCase();
  const skus = new Set(Array.from({ length: any([1, 1, 2, 3]) }, () => cheaper(any(products), any(products)).sku));
  return {
    customer_id: customerId ?? `cus_${customer}`,
    email: `${customer}@example.com`,
    payment_method: weighted(PAYMENTS),
    lines: [...skus].map((sku) => ({ sku, quantity: any([1, 1, 1, 2, 3]) })),
    shipping_address: { name, street: "Invalidenstrasse 116", city: "Berlin", postal_code: weighted(POSTAL_CODES), country: "DE" },
  };
}

// Makes expensive products rare: their orders wait for approval.
const cheaper = (a, b) => (a.unit_price.amount < b.unit_price.amount ? a : b);
const any = (choices) => choices[Math.floor(Math.random() * choices.length)];
const weighted = (weights) => any(Object.entries(weights).flatMap(([choice, weight]) => Array(weight).fill(choice)));

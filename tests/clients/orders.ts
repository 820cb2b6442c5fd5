// Places, reads, lists and cancels an order with the generated types. `tsc` checks them, the API at argv[2] answers.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

declare const process: { argv: string[] };

const api = createClient<paths>({ baseUrl: process.argv[2] });

const address: components["schemas"]["Address"] = { name: "Ada", street: "Lovelace Road 1", city: "London", postal_code: "SW1Y 4JH", country: "GB" };
const placed = await api.POST("/orders", {
  params: { header: { "Idempotency-Key": "typescript" } },
  body: { customer_id: "cus_ts", email: "ada@example.com", payment_method: "pm_card_outage", lines: [{ sku: "MUG", quantity: 2 }], shipping_address: address },
});
if (!placed.data) throw new Error(placed.error.detail);
const path = { order_id: placed.data.order_id };

const read = await api.GET("/orders/{order_id}", { params: { path } });
const cents: number | undefined = read.data?.total.amount;
const listed = await api.GET("/orders", { params: { query: { status: ["placed", "reserved"], customer_id: "cus_ts" } } });
const cancelled = await api.POST("/orders/{order_id}/cancel", { params: { path, header: { Prefer: "wait=20" } } });
const missing = await api.GET("/orders/{order_id}", { params: { path: { order_id: "none" } } });
const problem: string | undefined = missing.error?.type;

// @ts-expect-error: a status that the API does not know
await api.GET("/orders", { params: { query: { status: ["lost"] } } });
// @ts-expect-error: a line without a quantity
await api.POST("/orders", { body: { lines: [{ sku: "MUG" }] } });

console.log(JSON.stringify([cents, listed.data?.items.length, cancelled.data?.status, cancelled.data?.failure?.code, problem]));

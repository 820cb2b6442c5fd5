// Calls the HTTP API. Every error response becomes a Problem (RFC 9457).

import { sentence } from "./format.js";

export class Problem extends Error {
  /** `type` is for programs; `errors` are [{field, message}], `field` a dotted path into the request body; `document` is as sent. */
  constructor({ type, status = 0, title = "No answer", detail, errors = [], document = { detail } }) {
    super(detail ?? title);
    this.type = type;
    this.status = status;
    this.errors = errors;
    this.document = document;
  }
}

/** What does not answer, by the type of the problem. */
export const UNAVAILABLE = {
  "urn:problem:no-worker": "no worker answers",
  "urn:problem:temporal-unavailable": "Temporal does not answer",
  "urn:problem:database-unavailable": "MongoDB does not answer",
  "urn:problem:deadline-exceeded": "MongoDB does not answer", // each call of Temporal has a shorter deadline
};

/** Sends a request; resolves to the JSON of the response. `key` is the Idempotency-Key: a repeated request takes effect once. */
export async function call(method, path, { body, key, signal } = {}) {
  const headers = { Accept: "application/json" };
  if (body) headers["Content-Type"] = "application/json";
  if (key) headers["Idempotency-Key"] = key;
  const response = await open(path, { method, headers, signal, body: body && JSON.stringify(body) });
  return response.json();
}

/** Sends a request; resolves to the response, or throws a Problem if it is an error. */
export async function open(path, options) {
  const apiKey = sessionStorage.getItem("api-key");
  if (apiKey) options.headers.Authorization = `Bearer ${apiKey}`;
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ detail: "The API does not answer. Try again in a moment." });
  }
  if (response.ok) return response;
  // A proxy in between may answer without a problem document, or without JSON.
  const problem = await response.json().catch(() => ({}));
  if (response.status === 401) {
    const { haveNewKey } = await import("./api-key.js");
    if (await haveNewKey(apiKey, problem.detail)) return open(path, options);
  }
  throw new Problem({ title: response.statusText || `Error ${response.status}`, ...problem, ...inWords(response.status, problem), status: response.status, document: problem });
}

/** What the person can do about a refusal; the API's own words are for programmers. */
function inWords(status, { type, detail = "" }) {
  const [, scope] = /the scope (\S+) is missing/.exec(detail) ?? [];
  if (status === 401) return { detail: "The API requires a valid key or access token." };
  if (UNAVAILABLE[type]) return { detail: `${sentence(UNAVAILABLE[type])}. Try again in a moment.` };
  return scope ? { detail: `Your key or token does not permit this: it lacks the scope ${scope}.` } : {};
}

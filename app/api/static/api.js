// Talks to the HTTP API. Every refusal arrives here as a Problem (RFC 9457), whatever its cause.

export class Problem extends Error {
  /** `errors` are [{field, message}], `field` a dotted path into the request body. */
  constructor({ status = 0, title = "No answer", detail, errors = [] }) {
    super(detail ?? title);
    this.status = status;
    this.errors = errors;
  }
}

/** One request; resolves to the answer's JSON. `key` is the Idempotency-Key: a repeated request takes effect once. */
export async function call(method, path, { body, key, signal } = {}) {
  const headers = { Accept: "application/json" };
  if (body) headers["Content-Type"] = "application/json";
  if (key) headers["Idempotency-Key"] = key;
  const response = await open(path, { method, headers, signal, body: body && JSON.stringify(body) });
  return response.json();
}

/** One request; resolves to the response itself, once it is a good one. */
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
  if (response.status === 401 && (await haveNewKey(apiKey))) return open(path, options);
  // A proxy in between may answer with something that is no problem document, or no JSON at all.
  const problem = await response.json().catch(() => ({}));
  throw new Problem({ title: response.statusText || `Error ${response.status}`, ...problem, status: response.status });
}

let asking = null;

/** Asks for the API key, once for all requests that wait for it, and not again after it was declined. */
async function haveNewKey(refused) {
  if (sessionStorage.getItem("api-key") !== refused) return true;
  asking ??= import("./dialog.js").then(({ ask }) =>
    ask({
      title: "API key",
      note: refused ? "This key was not accepted." : "This API asks for a key. It is kept until the tab is closed.",
      fields: [{ name: "key", label: "Key", type: "password", autocomplete: "off", required: true }],
      confirm: "Use key",
      send: ({ key }) => sessionStorage.setItem("api-key", key),
    }),
  );
  const given = await asking;
  if (given) asking = null;
  return given;
}

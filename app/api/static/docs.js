// Shows the API's OpenAPI description: endpoints by tag, then the schemas that they name. Loads nothing from elsewhere.

import { call, open } from "./api.js";
import { element } from "./dom.js";

const TONES = { get: "run", post: "good", put: "wait", patch: "wait", delete: "bad" };

const contents = document.getElementById("contents");
const main = document.getElementById("endpoints");

let newest = "ORDER_ID"; // an order that exists, if there is one

function show({ paths, components: { schemas } }) {
  const endpoints = Object.entries(paths).flatMap(([path, methods]) => Object.entries(methods).map(([method, operation]) => ({ path, method, ...operation })));
  for (const [tag, tagged] of Map.groupBy(endpoints, ({ tags = ["other"] }) => tags[0])) {
    contents.append(element("p", {}, inCapitals(tag)), ...tagged.map((endpoint) => element("a", { href: `#${endpoint.operationId}` }, ...title(endpoint))));
    main.append(element("h2", {}, inCapitals(tag)), ...tagged.map((endpoint) => article(endpoint, schemas)));
  }
  main.append(element("h2", {}, "Schemas"));
  for (const [name, schema] of Object.entries(schemas)) {
    const fields = schema.enum ? [element("p", {}, ...type(schema))] : table("Fields", fieldsOf(schema));
    main.append(element("article", { id: name }, element("h3", {}, name), ...prose(schema.description), ...fields));
  }
}

function article(endpoint, schemas) {
  const { operationId, parameters = [], requestBody, responses, description } = endpoint;
  const body = requestBody?.content["application/json"]?.schema;
  const rows = parameters.map(({ name, in: place, required, schema, description }) => [name, [`${place}, `, ...type(schema)], required, description]);
  const scopes = endpoint.security?.flatMap((schemes) => Object.values(schemes).flat()) ?? [];
  const answers = Object.entries(responses).map(([status, { description, content = {} }]) => [status, contentType(content), true, description]);
  return element(
    "article",
    { id: operationId },
    element("h3", {}, ...title(endpoint)),
    ...prose(description),
    endpoint.security.length && element("p", {}, "Needs an API key or a token", ...(scopes.length ? [" with the scope ", ...list(scopes)] : []), ", unless the API is open."),
    ...table("Parameters", rows),
    body && element("p", {}, "Body: ", ...type(body)),
    ...table("Responses", answers),
    ...execution(endpoint, body && JSON.stringify(schemas[nameOf(body)].examples?.[0] ?? {})),
  );
}

const title = ({ method, path }) => [element("span", { class: "badge", "data-tone": TONES[method] }, method.toUpperCase()), " ", element("code", {}, path)];

const inCapitals = (word) => word[0].toUpperCase() + word.slice(1);

/** Paragraphs and the items of lists, with `code` between backticks. */
function prose(text = "") {
  const paragraphs = text.split(/\n\n|\n(?=- )/).map((paragraph) => paragraph.replace(/^- /, "• ")).filter(Boolean);
  return paragraphs.map((paragraph) => element("p", {}, ...paragraph.split("`").map((part, i) => (i % 2 ? element("code", {}, part) : part))));
}

/** A table of rows [name, type, required, description], or nothing. */
function table(caption, rows) {
  if (!rows.length) return [];
  const body = rows.map(([name, kind, required, description]) =>
    element("tr", {}, element("th", { scope: "row" }, element("code", {}, name)), element("td", {}, ...kind, required ? null : " (optional)", ...prose(description))),
  );
  return [element("table", {}, element("caption", {}, caption), element("tbody", {}, ...body))];
}

function fieldsOf({ properties = {}, required = [] }) {
  return Object.entries(properties).map(([name, schema]) => [name, type(schema), required.includes(name), schema.description]);
}

function contentType(content) {
  return Object.entries(content).flatMap(([kind, { schema }]) => [element("code", {}, kind), ...(schema?.$ref ? [": ", ...type(schema)] : [])]);
}

/** A schema in words, as children of an element; schemas with a name as links. */
function type(schema) {
  if (schema.$ref) return [element("a", { href: `#${nameOf(schema)}` }, nameOf(schema))];
  if (schema.anyOf) return list(schema.anyOf, type);
  if (schema.enum) return list(schema.enum);
  if (schema.const) return list([schema.const]);
  const least = schema.minimum ?? schema.minLength ?? schema.minItems;
  const most = schema.maximum ?? schema.maxLength ?? schema.maxItems;
  const bounds = [least != null && `from ${least.toLocaleString()}`, most != null && `to ${most.toLocaleString()}`].filter(Boolean);
  if (bounds.length && schema.type === "string") bounds.push("characters");
  const words = { string: schema.format === "date-time" ? "time" : "text", integer: "whole number", boolean: "true or false", array: "list" };
  const kind = [[words[schema.type] ?? schema.type ?? "anything", ...bounds].join(" ")];
  if (schema.items) kind.push(" of ", ...type(schema.items));
  if (schema.additionalProperties?.type) kind.push(" of ", ...type(schema.additionalProperties));
  if (schema.pattern) kind.push(", ", element("code", {}, schema.pattern));
  if (schema.default != null) kind.push(", by default ", element("code", {}, JSON.stringify(schema.default)));
  return kind;
}

/** The items with "or" between them. */
function list(items, show = (item) => [element("code", {}, String(item))]) {
  return items.flatMap((item, i) => [...(i ? [" or "] : []), ...show(item)]);
}

const nameOf = ({ $ref }) => $ref.split("/").at(-1);

const asResponse = ({ status, document }) => ({ status, text: () => JSON.stringify(document) });

/** A command line that a POSIX shell accepts, and a form that sends the same request; a stream is left to curl. */
function execution({ method, path, security, responses, parameters = [] }, body) {
  const samples = Object.fromEntries(parameters.map(({ name, example }) => [name, example]));
  const target = path.replace(/\{(\w+)\}/g, (_, name) => samples[name] ?? newest);
  const isStream = responses[200]?.content?.["text/event-stream"];
  const parts = ["curl", method !== "get" && `-X ${method.toUpperCase()}`, isStream && "-N", `"${location.origin}${target}"`];
  if (security.length && sessionStorage.getItem("api-key")) parts.push('-H "Authorization: Bearer $KEY"');
  if (body) parts.push("--json", `'${body}'`);
  const command = element("pre", {}, element("code", {}, parts.filter(Boolean).join(" ")));
  if (isStream) return [command];

  const url = element("input", { "aria-label": "Path and query", value: target, spellcheck: "false" });
  const text = body && element("textarea", { "aria-label": "Body", rows: 6, spellcheck: "false" }, JSON.stringify(JSON.parse(body), null, 2));
  const answer = element("pre", { role: "status", hidden: true });
  const send = async (event) => {
    event.preventDefault();
    const headers = body ? { "Content-Type": "application/json" } : {};
    const response = await open(url.value, { method: method.toUpperCase(), headers, body: text?.value }).catch(asResponse);
    const content = await response.text();
    answer.textContent = `${response.status} ${content.startsWith("{") ? JSON.stringify(JSON.parse(content), null, 2) : content}`;
    answer.hidden = false;
  };
  return [command, element("form", { onsubmit: send }, url, text, element("button", {}, "Execute"), answer)];
}

try {
  const { items } = await call("GET", "/orders?limit=1").catch(() => ({ items: [] }));
  newest = items[0]?.order_id ?? newest;
  show(await call("GET", "/openapi.json"));
  document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
} catch (problem) {
  const alert = main.querySelector("[role=alert]");
  alert.textContent = problem.message;
  alert.hidden = false;
}

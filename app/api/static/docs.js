// Shows the API's OpenAPI description: endpoints by tag, then the schemas that they name. Loads nothing from elsewhere.

import { call } from "./api.js";
import { element } from "./dom.js";

const TONES = { get: "run", post: "good", put: "wait", patch: "wait", delete: "bad" };
const SAMPLES = {
  customer_id: "cus_ada", email: "ada@example.com", payment_method: "pm_card_ok", sku: "MUG-BLUE", reason: "no longer needed",
  name: "Ada Lovelace", street: "Invalidenstrasse 116", city: "Berlin", postal_code: "10115", country: "DE", currency: "EUR", amount: 1299,
};

const contents = document.getElementById("contents");
const main = document.getElementById("endpoints");

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
  const answers = Object.entries(responses).map(([status, { description, content = {} }]) => [status, [`${description}. `, ...contentType(content)], true]);
  return element(
    "article",
    { id: operationId },
    element("h3", {}, ...title(endpoint)),
    ...prose(description),
    endpoint.security.length && element("p", {}, "Needs an API key or a token", ...(scopes.length ? [" with the scope ", ...list(scopes)] : []), ", unless the API is open."),
    ...table("Parameters", rows),
    body && element("p", {}, "Body: ", ...type(body)),
    ...table("Responses", answers),
    element("pre", {}, element("code", {}, curl(endpoint, body, schemas))),
  );
}

const title = ({ method, path }) => [element("span", { class: "badge", "data-tone": TONES[method] }, method.toUpperCase()), " ", element("code", {}, path)];

const inCapitals = (word) => word[0].toUpperCase() + word.slice(1);

/** Paragraphs, with `code` between backticks. */
function prose(text = "") {
  const paragraphs = text.split("\n\n").filter(Boolean);
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

/** A command line that a POSIX shell accepts. */
function curl({ method, path, security, responses }, body, schemas) {
  const parts = ["curl"];
  if (method !== "get") parts.push(`-X ${method.toUpperCase()}`);
  if (responses[200]?.content?.["text/event-stream"]) parts.push("-N");
  parts.push(`"${location.origin}${path.replace(/\{(\w+)\}/g, (_, name) => SAMPLES[name] ?? `$${name.toUpperCase()}`)}"`);
  if (security && sessionStorage.getItem("api-key")) parts.push('-H "Authorization: Bearer $KEY"');
  if (body) parts.push("--json", `'${JSON.stringify(sample(body, schemas))}'`);
  return parts.join(" ");
}

/** A value that fits a schema, as far as the schema tells. */
function sample(schema, schemas, name) {
  if (schema.$ref) return sample(schemas[nameOf(schema)], schemas, name);
  if (schema.anyOf) return sample(schema.anyOf[0], schemas, name);
  if (schema.properties) return Object.fromEntries(Object.entries(schema.properties).map(([field, inner]) => [field, sample(inner, schemas, field)]));
  if (schema.items) return [sample(schema.items, schemas)];
  return SAMPLES[name] ?? schema.enum?.[0] ?? { integer: Math.max(1, schema.minimum ?? 1), boolean: true }[schema.type] ?? "text";
}

try {
  show(await call("GET", "/openapi.json"));
  document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
} catch (problem) {
  const alert = main.querySelector("[role=alert]");
  alert.textContent = problem.message;
  alert.hidden = false;
}

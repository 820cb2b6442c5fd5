// The panel of `make dev`: shows the state of each server, and stops, kills, freezes, resumes and starts it.

const control = document.querySelector("meta[name=dev-control]").content;
const strip = document.getElementById("dev");
const INTERVAL = 1000; // ms between two looks at the servers
const rows = new Map(); // server: the parts of its row

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const list = element("ul");
const note = element("p", { role: "status" });
strip.setAttribute("aria-label", "Break it");
strip.append(element("h2", {}, "Break it"), list, note);

function build({ name, title }) {
  const state = element("span");
  const buttons = ["stop", "resume", "start", "kill", "freeze"].map((action) => {
    const button = element("button", { type: "button", hidden: true }, action[0].toUpperCase() + action.slice(1));
    button.ariaLabel = `${button.textContent} ${title}`;
    button.addEventListener("click", () => act(name, action));
    return { action, button };
  });
  const item = element("li", {}, element("b", {}, title), state, ...buttons.map(({ button }) => button));
  list.append(item);
  return { item, state, buttons };
}

/** Shows the servers. Only what is different changes, so that the focus stays where it is. */
function show({ servers }) {
  for (const server of servers) {
    if (!rows.has(server.name)) rows.set(server.name, build(server));
    const row = rows.get(server.name);
    const { item, state, buttons } = row;
    if (item.dataset.state !== server.state) item.dataset.state = state.textContent = server.state;
    const { activeElement } = document;
    const hadFocus = item.contains(activeElement) || (row.lostFocus && activeElement === document.body);
    for (const { action, button } of buttons) button.hidden = !server.actions.includes(action);
    const first = buttons.find(({ button }) => !button.hidden)?.button;
    if (hadFocus && (row.lostFocus || activeElement.hidden)) first?.focus();
    row.lostFocus = hadFocus && !first; // a server that stops or starts has no buttons for a moment
  }
  const down = servers.filter(({ state }) => state !== "running").map(({ name }) => name);
  const problem = servers.find((server) => server.problem)?.problem;
  const effect = down.includes("mongod") ? "Without MongoDB, no order is accepted or lost." : "No order is lost: it waits.";
  say(problem ?? (down.length ? effect : "Orders will wait."));
  strip.hidden = false;
}

function say(text) {
  if (note.textContent !== text) note.textContent = text;
}

async function act(name, action) {
  const headers = { "Content-Type": "application/json" };
  await ask(`/servers/${name}`, { method: "POST", headers, body: JSON.stringify({ action }) });
}

async function ask(path, options) {
  const response = await fetch(control + path, { cache: "no-store", signal: AbortSignal.timeout(3000), ...options }).catch(() => null);
  if (response?.ok) show(await response.json());
  else if (!response) say("make dev does not answer.");
}

for (;;) {
  if (!document.hidden) await ask("/servers");
  await new Promise((resolve) => setTimeout(resolve, INTERVAL));
}

// Asks for an API key if the API requires one (401), and keeps it until the tab is closed.

import { ask } from "./dialog.js";

let asking = null;

/** Asks once for all waiting requests, and not again once dismissed. Resolves to true if there is a new key. */
export async function haveNewKey(refused) {
  if (sessionStorage.getItem("api-key") !== refused) return true;
  asking ??= ask({
    title: "API key",
    note: refused ? "This key was not accepted." : "This API requires a key. It is kept until the tab is closed.",
    fields: [{ name: "key", label: "Key", type: "password", autocomplete: "off", required: true }],
    confirm: "Use key",
    send: ({ key }) => sessionStorage.setItem("api-key", key),
  });
  const given = await asking;
  if (given) asking = null;
  return given;
}

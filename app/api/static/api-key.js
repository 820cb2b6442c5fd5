// An API that wants a key (401): asks for it, and keeps it until the tab is closed.

import { ask } from "./dialog.js";

let asking = null;

/** Asks once for all requests that wait, and not again after it was declined. Resolves to whether there is a new key. */
export async function haveNewKey(refused) {
  if (sessionStorage.getItem("api-key") !== refused) return true;
  asking ??= ask({
    title: "API key",
    note: refused ? "This key was not accepted." : "This API asks for a key. It is kept until the tab is closed.",
    fields: [{ name: "key", label: "Key", type: "password", autocomplete: "off", required: true }],
    confirm: "Use key",
    send: ({ key }) => sessionStorage.setItem("api-key", key),
  });
  const given = await asking;
  if (given) asking = null;
  return given;
}

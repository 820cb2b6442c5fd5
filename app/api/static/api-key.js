// Asks for an API key or an access token if the API requires one (401), and keeps it until the tab is closed.

import { Problem } from "./api.js";
import { ask } from "./dialog.js";

let asking = null;

/** Asks once for all waiting requests, and not again once dismissed. Resolves to true if there is a new key. */
export async function haveNewKey(refused, detail = "") {
  if (sessionStorage.getItem("api-key") !== refused) return true;
  let note = "This API requires a key. It is kept until the tab is closed.";
  if (refused) note = /expired/i.test(detail) ? "The token has expired. Use a new one." : "This key was not accepted.";
  asking ??= askForKey(note);
  const given = await asking;
  if (given) asking = null;
  return given;
}

/** Resolves to true once a key is given, to false if the dialog is dismissed. */
export function askForKey(note) {
  return ask({
    title: "API key",
    note,
    fields: [{ name: "key", label: "API key or access token", type: "password", autocomplete: "off", required: true }],
    confirm: "Use key",
    send({ key }) {
      const given = key.trim().replace(/^bearer\s+/i, ""); // as it is in a copied header
      if (!/^[!-~]+$/.test(given)) throw new Problem({ errors: [{ field: "key", message: "must be printable ASCII characters without spaces" }] });
      sessionStorage.setItem("api-key", given);
    },
  });
}

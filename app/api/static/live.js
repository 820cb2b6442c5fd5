// Follows a stream of server-sent events, because EventSource cannot send an API key.

import { open } from "./api.js";

const SILENCE = 5_000; // ms without an event, after which the page asks whether the API still answers
const ANSWER = 4_000; // ms that the API has for that
const CHECKS = 9; // checks in a row without even a keep-alive comment on the stream, after which it counts as dead
const LONGEST_WAIT = 10_000; // ms between two attempts to reconnect

/**
 * Calls `opened()` each time the stream opens, then `handlers[event](data)` for every event, and `lost(problem)` each time
 * it goes down, with the API's problem if there is one. Events wait until `opened` is done; if it throws, the stream counts as down. Reconnects by itself, and resumes
 * after the last event that it saw. Returns a function that reconnects at once.
 */
export function follow(path, { opened, lost, handlers }) {
  let lastEventId = null;
  let failures = 0;
  let wake = () => {};
  let connection;

  async function run() {
    for (;;) {
      connection = new AbortController();
      let problem;
      try {
        const headers = { Accept: "text/event-stream" };
        if (lastEventId) headers["Last-Event-ID"] = lastEventId;
        const response = await open(path, { headers, signal: connection.signal, cache: "no-store" });
        await opened();
        failures = 0;
        for await (const { id, name, data } of events(response.body)) {
          lastEventId = id ?? lastEventId;
          try {
            handlers[name]?.(JSON.parse(data));
          } catch (error) {
            reportError(error); // an error in one handler must not lose the next event
          }
        }
      } catch (error) {
        problem = error; // refused, cut or silent: in each case the stream is down
      }
      connection.abort();
      lost(problem);
      // Jitter, so that a thousand pages do not reconnect at the same moment after a restart.
      const wait = Math.min(LONGEST_WAIT, 500 * 2 ** failures++) * (0.5 + Math.random() / 2);
      await new Promise((resolve) => {
        wake = resolve;
        setTimeout(resolve, wait);
      });
    }
  }

  run();
  addEventListener("online", () => wake());
  addEventListener("offline", () => connection.abort());
  return () => wake();
}

/** Parses events (https://html.spec.whatwg.org/multipage/server-sent-events.html) with lines that end in LF or CRLF. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = { name: "message", data: [] };
  for (;;) {
    const { value, done } = await orDead(reader.read());
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      const [, field, text] = /^([^:]*):? ?(.*)$/.exec(line);
      if (field === "data") event.data.push(text);
      else if (field === "event") event.name = text;
      else if (field === "id") event.id = text;
      else if (line === "") {
        if (event.data.length) yield { ...event, data: event.data.join("\n") };
        event = { name: "message", data: [] };
      }
    }
  }
}

/** Rejects if the connection is dead: the API no longer answers, or it does, but the stream lacks its keep-alive comments. */
async function orDead(reading) {
  for (let check = 0; check < CHECKS; check++) {
    const read = await within(SILENCE, reading, () => null);
    if (read) return read;
    if (document.hidden) continue;
    const answer = fetch("/healthz", { cache: "no-store" });
    const { status } = await within(ANSWER, answer, () => ({ status: 504 }));
    if (status >= 500) throw new Error("The API does not answer");
  }
  throw new Error("The stream is silent");
}

/** Resolves as `promise` does, or to `otherwise()` after `ms`. */
function within(ms, promise, otherwise) {
  let timer;
  const late = new Promise((resolve) => (timer = setTimeout(() => resolve(otherwise()), ms)));
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

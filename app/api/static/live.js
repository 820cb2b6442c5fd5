// Follows a stream of server-sent events, because EventSource cannot send an API key.

import { open } from "./api.js";

const SILENCE = 45_000; // ms without even a keep-alive comment, after which a connection counts as dead
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

  async function run() {
    for (;;) {
      const connection = new AbortController();
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
  return () => wake();
}

/** Parses events (https://html.spec.whatwg.org/multipage/server-sent-events.html) with lines that end in LF or CRLF. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = { name: "message", data: [] };
  for (;;) {
    const { value, done } = await orSilence(reader.read());
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

/** Rejects after a silence. A connection that works is never silent: the server sends keep-alive comments. */
function orSilence(reading) {
  let timer;
  const silence = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("The stream is silent")), SILENCE);
  });
  return Promise.race([reading, silence]).finally(() => clearTimeout(timer));
}

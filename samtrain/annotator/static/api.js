// Talks to the server. Every failure has a sentence that can be shown; a save keeps its id when it is sent again, so that the
// server stores it once however often the answer was lost.

const LINES = "application/x-ndjson";
const PAUSES = [0.3, 0.6, 1, 2, 3]; // seconds between attempts; the last one repeats

/** A refusal or a failure, with the server's sentence. `status` is 0 if the server did not answer at all. */
export class ApiError extends Error {
  constructor(status, message, reason = null) {
    super(message);
    this.status = status;
    this.reason = reason; // of a refusal: "leased", "expired", "closed", ...
  }
}

/** Returns a function that calls the server: `call("POST", "/api/next", {...})` gives the answer's JSON. */
export function createApi({ token = null, fetch: send = (...given) => window.fetch(...given), base = "" } = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};

  async function respond(method, path, body, signal, more = {}) {
    const options = { method, headers: { ...headers, ...more }, signal, credentials: "same-origin", cache: "no-store" };
    if (body !== undefined) {
      options.headers["Content-Type"] = "application/json";
      options.body = JSON.stringify(body);
    }
    let response;
    try {
      response = await send(base + path, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "The server does not answer.");
    }
    if (!response.ok) throw await refusalOf(response);
    return response;
  }

  async function call(method, path, body, { signal } = {}) {
    const response = await respond(method, path, body, signal);
    if (response.status === 204) return null;
    try {
      return await response.json();
    } catch {
      throw new ApiError(0, "The server's answer ended early.");
    }
  }

  /** Asks for an answer in lines of JSON and calls `take(value)` for each line as soon as it is there. */
  async function lines(method, path, body, take, { signal } = {}) {
    const response = await respond(method, path, body, signal, { Accept: LINES });
    if (!response.headers.get("content-type")?.startsWith(LINES)) throw new ApiError(500, "The server's answer is of another version: load this page again.");
    const decoder = new TextDecoder();
    let begun = ""; // the line that is not complete yet
    try {
      for (const reader = response.body.getReader(); ; ) {
        const { done, value } = await reader.read();
        if (done) break;
        const parts = decoder.decode(value, { stream: true }).split("\n");
        parts[0] = begun + parts[0];
        begun = parts.pop();
        parts.forEach((line) => take(JSON.parse(line)));
      }
      if (begun) throw new Error("the last line is not complete");
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "The server's answer ended early.");
    }
  }

  async function blob(path, { signal } = {}) {
    const response = await respond("GET", path, undefined, signal);
    return response.blob();
  }

  /**
   * Repeats a call until the server answers. `onTrouble(error, seconds)` is told of each attempt without an answer. Refusals
   * (4xx) are thrown at once: repeating them would not help.
   */
  function persist(method, path, body, options = {}) {
    return repeat(() => call(method, path, body, options), options);
  }

  function persistLines(method, path, body, take, options = {}) {
    return repeat(() => lines(method, path, body, take, options), options);
  }

  async function repeat(ask, { onTrouble = () => {}, wait = pause }) {
    for (let attempt = 0; ; attempt++) {
      try {
        return await ask();
      } catch (error) {
        if (!isTrouble(error)) throw error;
        const seconds = PAUSES[Math.min(attempt, PAUSES.length - 1)];
        onTrouble(error, seconds);
        await wait(seconds);
      }
    }
  }

  return { call, blob, persist, persistLines };
}

/** Says whether another attempt may succeed: no answer, a server that is starting, a proxy in between. */
export function isTrouble(error) {
  return error instanceof ApiError && (error.status === 0 || error.status >= 502);
}

export function pause(seconds) {
  return new Promise((done) => setTimeout(done, seconds * 1000));
}

async function refusalOf(response) {
  let told = {};
  try {
    told = await response.json();
  } catch {
    // not from our server; the status has to do
  }
  const sentence = told?.error ? sentenceOf(String(told.error)) : `The server answered with status ${response.status}.`;
  return new ApiError(response.status, sentence, told?.reason ?? null);
}

/** Returns a text with a capital at its start and a full stop at its end. */
function sentenceOf(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}

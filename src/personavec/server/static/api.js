/** The server's API: the key, errors in the server's words, replies as a stream of chunks. */

/** Status 0: no answer at all. `text` is for people. */
export class ApiError extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    this.status = status;
    const wait = retryAfter ? ` (try again in ${retryAfter} s)` : "";
    const lead = { 0: "", 429: "Too many requests: ", 503: "The server is busy: " }[status];
    this.text = (lead ?? "") + message + wait;
  }
}

const LOST = "The server does not answer. Is it still running?";
let asking = null;

/** How a key is asked for; `key.js` puts a dialog here. Resolves to a key, or null. */
export const keys = { ask: async () => null };

/** The parsed JSON at a path. With `quiet`, a missing key is an error rather than a question. */
export async function get(path, { quiet = false } = {}) {
  return (await call(path, {}, quiet)).json();
}

/** The chunks of a streamed chat completion; aborting `signal` stops the reply at the server too. */
export async function* stream(body, signal) {
  const options = { method: "POST", body: JSON.stringify({ ...body, stream: true }), signal };
  const response = await call("/v1/chat/completions", options, false);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new ApiError(0, "The reply broke off before its end.");
      const events = (rest + value).split(/\r?\n\r?\n/);
      rest = events.pop();
      for (const event of events) {
        const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        const text = data.map((line) => line.slice(5).trimStart()).join("\n");
        if (text === "[DONE]") return;
        if (!text) continue;
        const chunk = JSON.parse(text);
        if (chunk.error) throw new ApiError(500, chunk.error.message);
        yield chunk;
      }
    }
  } catch (error) {
    throw error instanceof TypeError ? new ApiError(0, LOST) : error;
  } finally {
    reader.cancel().catch(() => {}); // already closed
  }
}

async function call(path, options, quiet) {
  const response = await send(path, options);
  if (response.ok) return response;
  if (response.status === 401 && !quiet && (await newKey())) return call(path, options, quiet);
  const body = await response.json().catch(() => null);
  const message = body?.error?.message ?? `${response.status} ${response.statusText}`;
  throw new ApiError(response.status, message, response.headers.get("retry-after"));
}

async function send(path, options) {
  const key = sessionStorage.getItem("key");
  const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  try {
    return await fetch(path, { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ApiError(0, LOST);
  }
}

/** Asks once, however many calls wait for the answer. */
async function newKey() {
  asking ??= keys.ask(sessionStorage.getItem("key") !== null);
  const key = await asking;
  asking = null;
  if (key) sessionStorage.setItem("key", key);
  return Boolean(key);
}

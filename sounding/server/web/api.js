// Access to the server: requests with the API key, error messages, streams.

const KEY = "sounding-key";

// An error response of the server, with its status; status 0 means that no server answers.
export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

let askForKey = null;

// Register `ask`, which is called when the server requires a key and returns one, or null.
export function onKeyWanted(ask) {
  askForKey = ask;
}

// Get or post JSON. Throws ServerError; an abort through `signal` is thrown as it is.
export async function call(path, { body, signal, quiet = false } = {}) {
  const response = await request(path, body, signal);
  if (response.status === 401 && !quiet && askForKey) {
    const key = await askForKey();
    if (key) {
      sessionStorage.setItem(KEY, key);
      return call(path, { body, signal, quiet: true });
    }
  }
  if (!response.ok) throw new ServerError(response.status, await reason(response));
  return response;
}

async function request(path, body, signal) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const method = body === undefined ? "GET" : "POST";
  try {
    return await fetch(path, { method, headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server does not answer. Is it still running?");
  }
}

async function reason(response) {
  const text = await response.text();
  try {
    const { error } = JSON.parse(text);
    return typeof error === "string" ? error : error.message;
  } catch {
    return text.slice(0, 200) || `The server answered ${response.status}.`;
  }
}

// The JSON objects of a stream of server-sent events, until "[DONE]". Comments keep it alive.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      held += value;
      const blocks = held.split(/\r?\n\r?\n/);
      held = blocks.pop();
      for (const block of blocks) {
        const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (!data.length) continue;
        const text = data.map((line) => line.slice(5).trimStart()).join("\n");
        if (text === "[DONE]") return;
        yield JSON.parse(text);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

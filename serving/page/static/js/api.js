// Asks the API that gave this page, with the key that was given to it, and turns refusals into words.

const KEPT = "headrace-key"; // in the storage of this tab, which ends with it

export class Refusal extends Error {
  constructor(status, problem) {
    super(problem?.detail || problem?.title || `the server answered ${status}`);
    this.status = status;
  }
}

/** The server did not answer at all. */
export class Silence extends Error {}

export function key() {
  try { return sessionStorage.getItem(KEPT); } catch { return null; }
}

export function keep(value) {
  try {
    if (value) sessionStorage.setItem(KEPT, value);
    else sessionStorage.removeItem(KEPT);
  } catch { /* storage may be forbidden: then the key is asked for again */ }
  dispatchEvent(new Event("rekeyed"));
}

async function answered(path, { method = "GET", body, timeout = 10_000, cache = "no-store" } = {}) {
  const headers = {};
  const sent = key();
  if (sent) headers.Authorization = `Bearer ${sent}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method, headers, cache, body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(timeout),
    });
  } catch (error) {
    throw new Silence(error.name === "TimeoutError" ? "no answer in time" : "no answer");
  }
  if (response.ok) return response;
  let problem = null;
  try { problem = await response.json(); } catch { /* not of the API's making, say a proxy's */ }
  if (response.status === 401 && key() === sent) dispatchEvent(new CustomEvent("keyless", { detail: problem?.detail }));
  throw new Refusal(response.status, problem);
}

export const get = async (path, options) => (await answered(path, options)).json();
export const getText = async (path, options) => (await answered(path, options)).text();
export const post = async (path, body, options) => (await answered(path, { ...options, method: "POST", body })).json();

export const recommendations = (user) => get(`/v1/recommendations/${encodeURIComponent(user)}?k=10`);

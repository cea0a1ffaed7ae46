// Call the REST API as the one who is logged in. A refusal becomes an error with the message of the server.

const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content || "";

export class Refusal extends Error {
  constructor(status, told) {
    super(told.message || `The server answered ${status}.`);
    this.status = status;
  }
}

export async function call(method, url, body) {
  return (await exchange(method, url, body)).told;
}

// The same, with more headers to say and those of the answer.
export async function exchange(method, url, body, more = {}) {
  const headers = { Accept: "application/json", "X-CSRF-Token": meta("form-token"), ...more };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(url, {
    method, headers, credentials: "same-origin", body: body === undefined ? undefined : JSON.stringify(body),
  });
  const told = response.status === 204 ? {} : await response.json().catch(() => ({}));
  if (!response.ok) throw new Refusal(response.status, told);
  return { told, headers: response.headers };
}

export const api = meta("api");

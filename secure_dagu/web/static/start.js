// The start dialog: parameters as the API takes them, at once or through a queue. Defaults that nobody touched are not
// sent, so those that are computed still are.

import { call } from "./api.js";

const form = document.querySelector("[data-start]");

function quoted(value) {
  return `"${value.replace(/[\\"]/g, "\\$&")}"`;
}

function typed() {
  const words = [];
  for (const place of form.querySelectorAll("[data-param]")) {
    const field = place.querySelector("[data-value]");
    if (field.disabled || field.value === field.dataset.first) continue;
    words.push(`${place.dataset.param}=${quoted(field.value)}`);
  }
  return words.join(" ");
}

function body() {
  const said = new FormData(form);
  const isTyped = form.querySelector("[data-typed]");
  const raw = form.elements.params;
  const text = isTyped ? typed() : raw && !raw.disabled && raw.value !== raw.defaultValue ? raw.value.trim() : "";
  const wanted = {};
  if (text) wanted.params = text;
  if (said.get("dagRunId")) wanted.dagRunId = said.get("dagRunId");
  const labels = (said.get("labels") || "").split(",").map((one) => one.trim()).filter(Boolean);
  if (labels.length) wanted.labels = labels;
  for (const name of ["singleton", "noReuse"]) if (said.has(name)) wanted[name] = true;
  if (said.get("how") === "enqueue" && said.get("queue")) wanted.queue = said.get("queue");
  return wanted;
}

function tell() {
  const isQueued = new FormData(form).get("how") === "enqueue";
  form.querySelector("[data-for-queue]").hidden = !isQueued;
  form.querySelector("[data-go-words]").textContent = isQueued ? "Enqueue" : "Start";
}

function grow(field) {
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight + 2, 240)}px`;
}

if (form) {
  // What the server wrote, not what is there now: somebody may have chosen before this ran, and browsers bring values back.
  const fresh = form.cloneNode(true);
  fresh.reset();
  const firsts = fresh.querySelectorAll("[data-value]");
  form.querySelectorAll("[data-value]").forEach((field, index) => { field.dataset.first = firsts[index].value; });
  for (const field of form.querySelectorAll("textarea")) {
    grow(field);
    field.addEventListener("input", () => grow(field));
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault(); // as in a field of one line; with Shift it is a new line
      form.requestSubmit();
    });
  }
  form.addEventListener("change", tell);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const place = form.querySelector("[data-error]");
    const button = form.querySelector("[data-go]");
    place.textContent = "";
    button.disabled = true;
    try {
      const made = await call("POST", `${form.dataset.start}/${new FormData(form).get("how")}`, body());
      location.assign(`${form.dataset.run}/${encodeURIComponent(made.dagRunId)}`);
    } catch (error) {
      place.textContent = error.message;
      button.disabled = false;
      place.scrollIntoView({ block: "nearest" });
    }
  });
  tell();
}

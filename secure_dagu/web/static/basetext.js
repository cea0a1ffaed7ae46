// The base configuration: saved only over the text that was read.

import { exchange } from "./api.js";
import { keys } from "./textkeys.js";

const form = document.querySelector("[data-base-text]");
const field = form.querySelector("textarea");
const state = form.querySelector("[data-base-state]");
const problem = form.querySelector("[data-base-error]");
const button = form.querySelector("button");
let saved = field.defaultValue; // as it was written into the page: somebody may have typed before this ran

function say(text, kind = "") {
  if (state.textContent !== text) state.textContent = text;
  state.className = `badge ${kind}`;
}

function changed() {
  if (field.value === saved) say("no changes");
  else say("unsaved changes", "badge-warn");
}

async function save() {
  if (!button || button.disabled) return;
  const spec = field.value;
  button.disabled = true;
  problem.hidden = true;
  try {
    const answer = await exchange("PUT", form.dataset.url, { spec }, { "If-Match": form.dataset.tag });
    form.dataset.tag = answer.headers.get("ETag");
    saved = spec;
    changed();
    if (field.value === saved) say("saved", "badge-good");
  } catch (error) {
    problem.textContent = error.message;
    problem.hidden = false;
  } finally {
    button.disabled = false;
  }
}

if (button) {
  keys(field);
  field.addEventListener("input", changed);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    save();
  });
  document.addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.altKey || event.key.toLowerCase() !== "s") return;
    event.preventDefault();
    save();
  });
  window.addEventListener("beforeunload", (event) => {
    if (field.value !== saved) event.preventDefault();
  });
  changed();
}

// The list of definitions: filter while typing, create.

import { call } from "./api.js";
import { live } from "./live.js";

const PAUSE_MS = 250;
const filters = document.querySelector("[data-flow-filters]");
let pausing;

function apply() {
  const query = new URLSearchParams();
  for (const [name, value] of new FormData(filters)) if (value.trim()) query.set(name, value.trim());
  history.replaceState(null, "", `${filters.action}?${query}`);
  live.refresh();
}

filters.addEventListener("input", () => {
  clearTimeout(pausing);
  pausing = setTimeout(apply, PAUSE_MS);
});
filters.addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(pausing);
  apply();
});

const dialog = document.getElementById("create-dialog");
const form = dialog?.querySelector("form");

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.open === "create-dialog") {
    dialog.showModal();
    tell();
  } else if (button && "close" in button.dataset) dialog.close();
});
form?.addEventListener("change", tell);
form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = event.submitter;
  const place = form.querySelector("[data-error]");
  place.textContent = "";
  button.disabled = true;
  try {
    const made = await call("POST", form.dataset.create, Object.fromEntries(new FormData(form)));
    location.assign(`${form.dataset.edit}/${encodeURIComponent(made.name)}/edit`);
  } catch (error) {
    place.textContent = error.message;
    button.disabled = false;
  }
});

function tell() {
  form.querySelector("[data-starter-text]").textContent = new FormData(form).get("spec");
}

// The frame of every page: menu, theme, keyboard shortcuts, leaving.

import { api, call } from "./api.js";
import { keep, read } from "./kept.js";
import { live } from "./live.js";
import { walk } from "./rows.js";

const WAYS = { o: "", w: "dags", r: "dag-runs", q: "queues", m: "workers", s: "search" };
const SECOND_KEY_MS = 1500;

const home = document.querySelector(".brand").href;
const dialog = document.querySelector("[data-shortcuts-dialog]");
let firstKeyAt = -SECOND_KEY_MS; // long ago

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if ("themeSwitch" in button.dataset) turnTheme();
  else if ("menu" in button.dataset) {
    button.setAttribute("aria-expanded", String(button.getAttribute("aria-expanded") !== "true"));
  } else if ("shortcuts" in button.dataset) dialog.showModal();
  else if (button.dataset.logOut) leave(button.dataset.logOut);
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") for (const menu of document.querySelectorAll("details.menu[open]")) close(menu);
  const isTyping = event.target.closest("input:not([type=checkbox]), textarea, select, [contenteditable]");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "?") dialog.showModal();
  else if (!areKeysOn()) return;
  else if (event.timeStamp - firstKeyAt < SECOND_KEY_MS && event.key in WAYS) location.assign(home + WAYS[event.key]);
  else if (event.key === "/") {
    const field = document.querySelector("main input[type=search]");
    if (!field) location.assign(`${home}search`);
    else {
      event.preventDefault();
      field.focus();
      field.select();
    }
  } else if (event.key === "r") live.refresh();
  else if (event.key === "j" || event.key === "k") walk(event.key === "j" ? 1 : -1);
  else if (event.key === "n" || event.key === "s") document.querySelector(`main [data-key-hint="${event.key}"]`)?.click();
  firstKeyAt = event.key === "g" ? event.timeStamp : -SECOND_KEY_MS;
});

const choice = dialog.querySelector("[data-keys-on]");
choice.checked = areKeysOn();
choice.addEventListener("change", () => keep("keys", choice.checked ? "" : "off"));

function areKeysOn() {
  return read("keys") !== "off";
}

function close(menu) {
  const isInside = menu.contains(document.activeElement);
  menu.open = false;
  if (isInside) menu.querySelector("summary").focus();
}

async function leave(target) {
  await call("POST", `${api}/auth/logout`).catch(() => undefined);
  location.assign(target);
}

function turnTheme() {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  keep("theme", root.dataset.theme);
}

// Pages of operating: buttons that change something through the REST API, forms, copying, ticking times.
//
// A button says what it does in data attributes; a dialog asks first where the button says so.

import { call } from "./api.js";
import { live } from "./live.js";

export function operate() {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.act) act(button);
    else if ("copy" in button.dataset) copy(button, button.dataset.copy);
    else if (button.dataset.copyFrom) copy(button, document.querySelector(button.dataset.copyFrom)?.textContent || "");
    else if ("secretDone" in button.dataset) location.reload();
  });
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.dataset.send) {
      event.preventDefault();
      send(form);
    } else if (form.dataset.decide) {
      event.preventDefault();
      decide(form, event.submitter?.value || "");
    }
  });
  document.addEventListener("toggle", oneMenu, true);
}

async function act(button) {
  const { act: method, url, ask, typed, affected, reasons, then } = button.dataset;
  const body = button.dataset.body ? JSON.parse(button.dataset.body) : undefined;
  if (ask) {
    const answer = await asked({ ask, typed, affected, reasons, action: button.textContent.trim(), danger: button.classList.contains("danger") });
    if (!answer) return;
    if (answer.reason) body.reason = answer.reason;
  }
  button.disabled = true;
  try {
    const told = await call(method, url, body);
    const menu = button.closest("details.menu");
    if (menu) menu.open = false;
    after(then, told);
  } catch (error) {
    say(error.message);
  } finally {
    button.disabled = false;
  }
}

function after(then, told) {
  if (then === "reload" || !then) again();
  else if (then === "rescheduled") say("A new run has been started.", `${location.pathname.replace(/[^/]+$/, "")}${encodeURIComponent(told.dagRunId)}`);
  else location.assign(then);
}

// A page without live regions shows what changed only when it is loaded again.
function again() {
  if (document.querySelector("[data-live]")) live.refresh();
  else location.reload();
}

async function send(form) {
  const body = {};
  for (const [name, value] of new FormData(form)) body[name] = value;
  const days = form.querySelector("[data-days]");
  if (days) {
    if (days.value) body[days.name] = new Date(Date.now() + Number(days.value) * 86400000).toISOString();
    else delete body[days.name];
  }
  await guarded(form, async () => {
    const told = await call(form.dataset.method || "POST", form.dataset.send, body);
    if (form.dataset.then === "secret") show(form, told.key);
    else if (form.dataset.then === "told") {
      form.reset();
      say(form.dataset.told);
    } else if (form.dataset.then === "reload") location.reload();
    else location.assign(form.dataset.then);
  });
}

function show(form, secret) {
  const place = document.querySelector("[data-secret]");
  place.querySelector("[data-secret-text]").textContent = secret;
  place.hidden = false;
  form.reset();
  form.closest("details").open = false;
  place.querySelector("button").focus();
}

async function decide(form, decision) {
  const given = {};
  for (const [name, value] of new FormData(form)) if (value !== "" && typeof value === "string") given[name] = value;
  const step = encodeURIComponent(form.dataset.step);
  const base = form.dataset.decide;
  await guarded(form, async () => {
    if (decision === "complete") await call("POST", `${base}/human-tasks/${step}/complete`, { fields: given });
    else if (decision === "reject") {
      const answer = await asked({ ask: "Reject this step? The run ends.", action: "Reject", danger: true, note: "Why" });
      if (!answer) return;
      await call("POST", `${base}/steps/${step}/reject`, { reason: answer.note || "" });
    } else await call("POST", `${base}/steps/${step}/${decision}`, { inputs: given });
    form.reset();
    document.activeElement?.blur();
    live.refresh();
  });
}

async function guarded(form, action) {
  const place = form.querySelector("[data-error]");
  if (place) place.textContent = "";
  const buttons = form.querySelectorAll("button");
  for (const button of buttons) button.disabled = true;
  try {
    await action();
  } catch (error) {
    if (place) place.textContent = error.message;
    else say(error.message);
  } finally {
    for (const button of buttons) button.disabled = false;
  }
}

// Ask in a dialog; the answer is null for no.
export function asked({ ask, typed, affected, reasons, action, danger, note }) {
  const dialog = document.createElement("dialog");
  dialog.className = "dialog ask-dialog";
  dialog.setAttribute("aria-label", action);
  const form = element("form");
  form.method = "dialog";
  form.append(element("h2", action), element("p", ask));
  if (affected) {
    form.append(element("p", "Affected runs:"));
    const list = element("ul");
    for (const run of affected.split("\n")) list.append(element("li", run));
    form.append(list);
  }
  let choice;
  if (reasons) {
    choice = element("select");
    for (const reason of reasons.split(" ")) choice.append(element("option", reason));
    form.append(labelled("Reason", choice));
  }
  let noted;
  if (note) {
    noted = element("input");
    noted.maxLength = 4096;
    form.append(labelled(note, noted));
  }
  const yes = element("button", action);
  yes.className = danger ? "button danger" : "button primary";
  yes.value = "yes";
  if (typed) {
    const field = element("input");
    field.autocomplete = "off";
    field.dataset.typedField = "";
    yes.disabled = true;
    field.addEventListener("input", () => {
      yes.disabled = field.value !== typed;
    });
    form.append(labelled(`Type ${typed} to go on`, field));
  }
  const no = element("button", "Cancel");
  no.type = "button";
  no.className = "button quiet";
  no.addEventListener("click", () => dialog.close());
  const row = element("div");
  row.className = "actions";
  row.append(yes, no);
  form.append(row);
  dialog.append(form);
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const said = dialog.returnValue === "yes";
      dialog.remove();
      resolve(said ? { reason: choice?.value, note: noted?.value } : null);
    });
  });
}

export function say(text, href = "") {
  let place = document.querySelector("[data-toast]");
  if (!place) {
    place = element("div");
    place.dataset.toast = "";
    place.className = "toast";
    place.setAttribute("role", "status");
    document.body.append(place);
  }
  place.replaceChildren(element("span", text));
  if (href) {
    const link = element("a", "Open it");
    link.href = href;
    place.append(" ", link);
  }
  const close = element("button", "✕");
  close.className = "button tiny quiet";
  close.setAttribute("aria-label", "Dismiss");
  close.addEventListener("click", () => place.remove());
  place.append(close);
}

async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = element("textarea", text);
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  const before = button.textContent;
  button.textContent = "✓";
  setTimeout(() => {
    button.textContent = before;
  }, 1500);
}

function oneMenu(event) {
  if (!event.target.matches?.("details.menu") || !event.target.open) return;
  for (const other of document.querySelectorAll("details.menu[open]")) if (other !== event.target) other.open = false;
}

function labelled(words, field) {
  const label = element("label");
  label.className = "field";
  label.append(element("span", words), field);
  return label;
}

function element(name, text = "") {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  return made;
}

operate();

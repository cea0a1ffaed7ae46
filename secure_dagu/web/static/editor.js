// The editor of a definition: a textarea that is good by keyboard, validated while somebody types, saved only over the
// text that was read. What is not saved stays in this tab, whatever happens to the page.

import { exchange } from "./api.js";
import { diff, near } from "./diff.js";
import { keys } from "./textkeys.js";

const PAUSE_MS = 350;
const MOST_PROBLEMS = 50;
const WHERE = /^[^\s:]+:(\d+):(\d+): ([\s\S]*)$/;

const form = document.querySelector("[data-editor]");
const part = (name) => document.querySelector(`[data-editor-${name}]`);
const field = part("text");
const notice = part("notice");
const dialog = document.querySelector("[data-conflict]");
const draftKey = `secure-dagu-draft:${form.dataset.url}`;

let saved = field.defaultValue; // as it was written into the page: somebody may have typed before this ran
let digest = form.dataset.digest;
let told = digest;
let problems = [];
let asked = 0;
let pausing;
let isSaving = false;

// ── what is typed ──────────────────────────────────────────────────────────────────────────────────────────────────

function changed() {
  number();
  state();
  keepDraft();
  clearTimeout(pausing);
  pausing = setTimeout(validate, PAUSE_MS);
}

function number() {
  const count = field.value.split("\n").length;
  const place = part("numbers");
  if (Number(place.dataset.count) === count) return;
  place.dataset.count = count;
  place.replaceChildren(element("pre", Array.from({ length: count }, (_, index) => index + 1).join("\n")));
  mark();
}

function state() {
  const isDirty = field.value !== saved;
  say(isDirty ? "unsaved changes" : "no changes", isDirty ? "badge badge-warn" : "badge");
  document.title = `${isDirty ? "• " : ""}${document.title.replace(/^• /, "")}`;
}

function say(text, kind) {
  const place = part("state");
  if (place.textContent !== text) place.textContent = text;
  place.className = kind;
}

function keepDraft() {
  try {
    if (field.value === saved) sessionStorage.removeItem(draftKey);
    else sessionStorage.setItem(draftKey, JSON.stringify({ text: field.value, digest }));
  } catch {
    // This browser keeps nothing; leaving the page still asks.
  }
}

function bringBack() {
  let draft = null;
  try {
    draft = JSON.parse(sessionStorage.getItem(draftKey));
  } catch {
    draft = null;
  }
  if (!draft || draft.text === saved) return;
  field.value = draft.text;
  tell("Changes that were not saved are here again.", "", ["Discard them", () => {
    insert(saved);
    notice.hidden = true;
  }]);
  digest = draft.digest; // saving says so if the file is another one since
}

// ── what is wrong with it ──────────────────────────────────────────────────────────────────────────────────────────

async function validate() {
  const mine = (asked += 1);
  const spec = field.value;
  let answer;
  try {
    answer = (await exchange("POST", form.dataset.validate, { spec, name: form.dataset.file })).told;
  } catch (error) {
    if (mine === asked) summary(`It could not be looked at: ${error.message}`, "warn");
    return;
  }
  if (mine !== asked) return;
  problems = answer.errors.map((error) => {
    const found = WHERE.exec(error);
    return found ? { line: Number(found[1]), column: Number(found[2]), text: found[3] } : { line: 0, column: 0, text: error };
  });
  if (answer.valid) summary("✓ It loads.", "good");
  else summary(`✕ ${problems.length} ${problems.length === 1 ? "problem" : "problems"}`, "bad");
  part("problems").replaceChildren(...problems.slice(0, MOST_PROBLEMS).map(listed));
  outline(answer.dag);
  mark();
}

function summary(text, kind) {
  const place = part("summary");
  if (place.textContent !== text) place.textContent = text;
  place.dataset.kind = kind;
}

function listed(problem) {
  const item = element("li");
  if (problem.line) {
    const button = element("button", `line ${problem.line}`);
    button.type = "button";
    button.className = "link-button";
    button.addEventListener("click", () => go(problem));
    item.append(button, " ");
  }
  item.append(element("bdi", problem.text));
  return item;
}

function mark() {
  const place = part("numbers");
  for (const old of place.querySelectorAll("i")) old.remove();
  for (const problem of problems.slice(0, MOST_PROBLEMS)) {
    if (!problem.line) continue;
    const sign = element("i", "✕");
    sign.style.setProperty("--line", String(problem.line - 1));
    sign.title = problem.text;
    place.append(sign);
  }
  scroll();
}

function outline(dag) {
  if (!dag) return;
  const list = element("ol");
  for (const step of (dag.steps || []).slice(0, 200)) {
    const item = element("li");
    item.append(element("bdi", step.name));
    if (step.depends?.length) item.append(" ", element("small", `after ${step.depends.join(", ")}`));
    list.append(item);
  }
  part("outline").replaceChildren(list);
}

function go({ line, column }) {
  const lines = field.value.split("\n");
  const begin = lines.slice(0, line - 1).reduce((sum, one) => sum + one.length + 1, 0);
  const at = begin + Math.min(Math.max(0, column - 1), (lines[line - 1] || "").length);
  field.focus();
  field.setSelectionRange(at, begin + (lines[line - 1] || "").length);
  field.scrollTop = (field.scrollHeight / lines.length) * (line - 1) - field.clientHeight / 3;
  field.scrollLeft = 0;
}

function nextProblem() {
  const line = field.value.slice(0, field.selectionEnd).split("\n").length;
  const placed = problems.filter((one) => one.line).sort((one, other) => one.line - other.line);
  const found = placed.find((one) => one.line > line) || placed[0];
  if (found) go(found);
}

function scroll() {
  part("numbers").scrollTop = field.scrollTop;
}

// ── saving ─────────────────────────────────────────────────────────────────────────────────────────────────────────

async function save({ over = digest, strict = true } = {}) {
  if (isSaving) return;
  isSaving = true;
  const spec = field.value;
  say("saving…", "badge");
  try {
    const query = strict ? "" : "?strict=false";
    const answer = await exchange("PUT", `${form.dataset.url}${query}`, { spec }, { "If-Match": `"${over}"` });
    saved = spec;
    digest = told = (answer.headers.get("ETag") || "").replaceAll('"', "");
    notice.hidden = true;
    state();
    keepDraft();
    if (field.value === saved) say(answer.told.errors.length ? "saved, and it does not load" : "saved", answer.told.errors.length ? "badge badge-bad" : "badge badge-good");
  } catch (error) {
    state();
    await refused(error);
  } finally {
    isSaving = false;
  }
}

async function refused(error) {
  if (error.status === 409) await conflict();
  else if (error.status === 400) {
    await validate();
    tell("It was not saved, for it does not load.", problems.length ? "" : error.message, ["Save it all the same", () => save({ strict: false })]);
  } else if (error.status === 401) tell("It was not saved: you are logged out.", "Log in in another tab, then save again. Your text stays here.");
  else tell("It was not saved.", error.status ? error.message : "The server does not answer. Your text stays here; save again later.");
}

async function conflict() {
  let answer;
  try {
    answer = await exchange("GET", form.dataset.url);
  } catch (error) {
    tell("It was not saved: somebody else changed this definition.", error.message);
    return;
  }
  const theirs = answer.told.spec;
  const tag = answer.headers.get("ETag").replaceAll('"', "");
  const place = dialog.querySelector("[data-diff]");
  place.replaceChildren(...near(diff(theirs, field.value)).map(([sign, line]) => {
    const shown = element("span", `${sign} ${line}\n`);
    shown.className = { "-": "diff-theirs", "+": "diff-mine" }[sign] || "";
    return shown;
  }));
  dialog.showModal();
  dialog.onclick = (event) => {
    const choice = event.target.closest("[data-conflict-do]")?.dataset.conflictDo;
    if (!choice) return;
    dialog.close();
    if (choice === "mine") save({ over: tag });
    else if (choice === "theirs") {
      insert(theirs);
      saved = theirs;
      digest = told = tag;
      notice.hidden = true;
      changed();
      tell("This is their text now.", "Undo brings yours back.");
    } else tell("Somebody else changed this definition.", "Saving shows again what differs.");
    field.focus();
  };
}

function tell(text, more = "", ...choices) {
  notice.replaceChildren(element("strong", text), " ", more, " ");
  for (const [words, action] of choices) {
    const button = element("button", words);
    button.type = "button";
    button.className = "button";
    button.addEventListener("click", action);
    notice.append(button, " ");
  }
  notice.setAttribute("role", "alert");
  notice.hidden = false;
}

// Replace the whole text so that undo brings it back.
function insert(text) {
  field.focus();
  field.select();
  if (!document.execCommand("insertText", false, text)) field.value = text;
  field.setSelectionRange(0, 0);
  changed();
}

function element(name, text = "") {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  return made;
}

// ── beginning ──────────────────────────────────────────────────────────────────────────────────────────────────────

keys(field);
field.addEventListener("input", changed);
field.addEventListener("scroll", scroll);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  save();
});
document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && !event.altKey && event.key.toLowerCase() === "s") {
    event.preventDefault();
    if (!dialog.open) save();
  } else if (event.key === "F8") {
    event.preventDefault();
    nextProblem();
  }
});
document.addEventListener("live:changed", () => {
  const seen = document.getElementById("editor-seen").dataset.seen;
  if (seen === digest || seen === told || isSaving) return;
  told = seen;
  if (field.value === saved) location.reload();
  else tell("Somebody else changed this definition.", "Saving shows what differs first.");
});
window.addEventListener("beforeunload", (event) => {
  if (field.value !== saved) event.preventDefault();
});
bringBack();
changed();
clearTimeout(pausing);
validate();
const line = /^#line-(\d+)$/.exec(location.hash);
if (line) go({ line: Number(line[1]), column: 1 });

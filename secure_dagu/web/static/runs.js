// Lists of runs: select some and do one thing with all of them; show the dates of the range that needs them.

import { call } from "./api.js";
import { live } from "./live.js";
import { asked } from "./operate.js";

const WORDS = { retry: "Retry", reschedule: "Reschedule", stop: "Stop", dequeue: "Dequeue", delete: "Delete" };
const NOTES = {
  delete: "Their logs and artifacts go with them. This cannot be undone.",
  reschedule: "Each becomes a new run with the same parameters and the definition that it was started with.",
};
const BODIES = { retry: (box) => ({ dagRunId: box.dataset.runId }), reschedule: () => ({}) };
const bar = document.querySelector("[data-selection]");
const chosen = new Set();

function boxes() {
  return [...document.querySelectorAll("[data-select]")];
}

function tell() {
  if (!bar) return;
  const here = new Set(boxes().map((box) => box.value));
  for (const value of [...chosen]) if (!here.has(value)) chosen.delete(value);
  for (const box of boxes()) box.checked = chosen.has(box.value);
  const all = document.querySelector("[data-select-all]");
  if (all) {
    all.checked = here.size > 0 && chosen.size === here.size;
    all.indeterminate = chosen.size > 0 && !all.checked;
  }
  bar.hidden = chosen.size === 0;
  bar.querySelector("[data-selected-count]").textContent = String(chosen.size);
}

async function batch(kind) {
  const runs = boxes().filter((box) => chosen.has(box.value));
  const what = `${WORDS[kind]} ${runs.length} ${runs.length === 1 ? "run" : "runs"}`;
  const names = runs.slice(0, 10).map((box) => `${box.dataset.runName}/${box.dataset.runId}`);
  if (runs.length > 10) names.push(`and ${runs.length - 10} more`);
  const answer = await asked({
    ask: NOTES[kind] ?? "Runs for which it makes no sense are left as they are.",
    action: what, danger: !(kind in BODIES), affected: names.join("\n"), typed: kind === "delete" ? "delete" : "",
  });
  if (!answer) return;
  const note = bar.querySelector("[data-batch-note]");
  const problems = [];
  for (const [index, box] of runs.entries()) {
    note.textContent = `${index + 1} of ${runs.length}…`;
    try {
      if (kind === "delete") await call("DELETE", box.value);
      else await call("POST", `${box.value}/${kind}`, BODIES[kind]?.(box));
      chosen.delete(box.value);
    } catch (error) {
      problems.push(`${box.dataset.runName}: ${error.message}`);
    }
  }
  note.textContent = problems.length ? `${problems.length} not done. ${problems[0]}` : "Done.";
  await live.refresh();
  tell();
}

document.addEventListener("change", (event) => {
  const box = event.target;
  if (box.matches("[data-select]")) {
    if (box.checked) chosen.add(box.value);
    else chosen.delete(box.value);
    tell();
  } else if (box.matches("[data-select-all]")) {
    for (const one of boxes()) {
      if (box.checked) chosen.add(one.value);
      else chosen.delete(one.value);
    }
    tell();
  } else if (box.matches("[data-range]")) {
    document.querySelector("[data-custom]").hidden = box.value !== "custom";
  }
});
bar?.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.batch) batch(button.dataset.batch);
  else if (button && "batchClear" in button.dataset) {
    chosen.clear();
    tell();
  }
});
document.addEventListener("live:changed", tell);
tell();

// Lists: j and k move from row to row, and so do the arrow keys once the focus is in a list. The focus stays in the
// column of ticks, or is on what opens the row: Enter and Space do there what they do everywhere.

const LIST = "[data-rows]";
const OPENS = ["a.strong-link", "a[href]", "summary"];
const WAYS = { ArrowDown: 1, ArrowUp: -1 };
const ELSEWHERE = "input:not([type=checkbox]), textarea, select, dialog, .menu-items, [contenteditable]";

const opens = (row) => OPENS.map((words) => row.querySelector(words)).find(Boolean);
const rowsOf = (list) => [...list.children].filter((row) => row.getClientRects().length && opens(row));

function enter(row) {
  const isTick = document.activeElement.matches("[data-select]");
  const target = (isTick && row.querySelector("[data-select]")) || opens(row);
  target.focus({ preventScroll: true });
  row.scrollIntoView({ block: "nearest" });
}

// Go to the next row of the page or to the one before; from outside of all lists to the first of `rows`.
export function walk(way, rows = rowsHere()) {
  const at = rows.findIndex((row) => row.contains(document.activeElement));
  const wanted = rows[at < 0 ? 0 : at + way];
  if (wanted) enter(wanted);
}

function rowsHere() {
  return [...document.querySelectorAll(LIST)].flatMap(rowsOf);
}

document.addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (!(key in WAYS || key === "Home" || key === "End") || target.closest(ELSEWHERE)) return;
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  const list = target.closest(LIST) || (target.matches(".table-scroll") && target.querySelector(LIST));
  if (!list) return;
  event.preventDefault();
  const own = rowsOf(list);
  if (key in WAYS) walk(WAYS[key], list.contains(target) ? rowsHere() : own);
  else if (own.length) enter(own.at(key === "Home" ? 0 : -1));
});

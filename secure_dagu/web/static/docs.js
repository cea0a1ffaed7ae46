// The API reference: a link opens what it leads to, and a search hides what does not fit.

const find = document.querySelector("[data-docs-find]");
const count = document.querySelector("[data-docs-count]");

function open() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target || target.nodeName !== "DETAILS") return;
  if (target.hidden) {
    find.querySelector("input").value = "";
    narrow();
  }
  target.open = true;
  target.scrollIntoView({ block: "start" });
}

function narrow() {
  const words = find.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const one of document.querySelectorAll("[data-words]")) {
    one.hidden = !words.every((word) => one.dataset.words.includes(word));
    if (!one.hidden) shown += 1;
  }
  for (const section of document.querySelectorAll("#endpoints section")) {
    section.hidden = !section.querySelector("[data-words]:not([hidden])");
  }
  count.textContent = words.length ? `${shown} found` : "";
}

find.addEventListener("input", narrow);
find.addEventListener("submit", (event) => event.preventDefault());
window.addEventListener("hashchange", open);
open();

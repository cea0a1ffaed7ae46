// Graphs: turn, zoom, drag, and move from step to step with the arrow keys. One step of a graph takes part in the
// order of Tab. Without this file every step is still in the table below.

import { keep } from "./kept.js";

const LEAST = 0.06;
const MOST = 2.5;
const READABLE = 0.7;
const STEP = 1.25;
const WAYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const zooms = new WeakMap();

const drawingOf = (graph) => [...graph.querySelectorAll("[data-drawing]")].find((one) => one.getClientRects().length);
const nodesOf = (drawing) => [...drawing.querySelectorAll("a.node")];

function place(node) {
  const box = node.firstElementChild;
  return [box.x.baseVal.value + box.width.baseVal.value / 2, box.y.baseVal.value + box.height.baseVal.value / 2];
}

function zoom(graph, value) {
  const view = graph.querySelector("[data-graph-view]");
  const before = zooms.get(graph) || 1;
  const after = Math.min(MOST, Math.max(LEAST, value));
  const middle = [(view.scrollLeft + view.clientWidth / 2) / before, (view.scrollTop + view.clientHeight / 2) / before];
  zooms.set(graph, after);
  graph.querySelector("[data-graph-sheet]").style.setProperty("--zoom", String(after));
  view.scrollLeft = middle[0] * after - view.clientWidth / 2;
  view.scrollTop = middle[1] * after - view.clientHeight / 2;
}

function fitting(graph) {
  const view = graph.querySelector("[data-graph-view]");
  const drawing = drawingOf(graph);
  const room = Math.max(view.clientHeight, Number.parseFloat(getComputedStyle(view).maxHeight) || 0);
  const [width, height] = ["width", "height"].map((side) => Number(drawing.getAttribute(side)) + 12);
  return Math.min(1, view.clientWidth / width, room / height);
}

function begin(graph) {
  zoom(graph, Math.max(READABLE, fitting(graph)));
  const view = graph.querySelector("[data-graph-view]");
  view.scrollTo(0, 0);
}

function enter(node, { focus = true } = {}) {
  for (const other of node.closest("[data-drawing]").querySelectorAll('a.node[tabindex="0"]')) other.setAttribute("tabindex", "-1");
  node.setAttribute("tabindex", "0");
  if (!focus) return;
  node.focus({ preventScroll: true });
  node.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function beside(node, nodes, [dx, dy]) {
  const [x, y] = place(node);
  let best = null;
  let least = Infinity;
  for (const other of nodes) {
    const [ox, oy] = place(other);
    const along = (ox - x) * dx + (oy - y) * dy;
    const across = Math.abs((ox - x) * dy) + Math.abs((oy - y) * dx);
    const far = along + 3 * across;
    if (along > 1 && far < least) [best, least] = [other, far];
  }
  return best;
}

function find(graph, word) {
  const nodes = nodesOf(drawingOf(graph));
  const at = nodes.findIndex((node) => node === document.activeElement || node.getAttribute("tabindex") === "0");
  const order = [...nodes.slice(at + 1), ...nodes.slice(0, at + 1)];
  const found = order.find((node) => node.classList.contains(`node-${word}`));
  if (found) {
    if ((zooms.get(graph) || 1) < READABLE) zoom(graph, 1);
    enter(found);
  }
}

function turn() {
  const root = document.documentElement;
  const isDown = getComputedStyle(document.querySelector(".drawing-tb")).display !== "none";
  root.dataset.graph = isDown ? "lr" : "tb";
  keep("graph", root.dataset.graph);
  for (const graph of document.querySelectorAll("[data-graph-view]")) begin(graph.closest("section"));
}

function drag(view) {
  let from = null;
  view.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse" || event.button || event.target.closest("a")) return;
    const box = view.getBoundingClientRect();
    if (event.clientX - box.left > view.clientWidth || event.clientY - box.top > view.clientHeight) return;
    from = [event.clientX + view.scrollLeft, event.clientY + view.scrollTop];
    view.setPointerCapture(event.pointerId);
    view.dataset.graphHeld = "";
  });
  view.addEventListener("pointermove", (event) => {
    if (from) view.scrollTo(from[0] - event.clientX, from[1] - event.clientY);
  });
  view.addEventListener("lostpointercapture", () => {
    from = null;
    delete view.dataset.graphHeld;
  });
}

function steer(graph) {
  const view = graph.querySelector("[data-graph-view]");
  graph.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const now = zooms.get(graph) || 1;
    if ("graphTurn" in button.dataset) turn();
    else if (button.dataset.graphFind) find(graph, button.dataset.graphFind);
    else if (button.dataset.graphZoom === "in") zoom(graph, now * STEP);
    else if (button.dataset.graphZoom === "out") zoom(graph, now / STEP);
    else if (button.dataset.graphZoom === "fit") zoom(graph, fitting(graph));
  });
  graph.addEventListener("keydown", (event) => {
    const node = event.target.closest("a.node");
    if (!node || event.ctrlKey || event.metaKey || event.altKey) return;
    const nodes = nodesOf(node.closest("[data-drawing]"));
    const to = event.key in WAYS ? beside(node, nodes, WAYS[event.key]) : { Home: nodes[0], End: nodes.at(-1) }[event.key];
    if (event.key in WAYS || to) event.preventDefault();
    if (to) enter(to);
  });
  graph.addEventListener("focusin", (event) => {
    const node = event.target.closest("a.node");
    if (node) enter(node, { focus: false });
  });
  view.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    zoom(graph, (zooms.get(graph) || 1) * (event.deltaY < 0 ? STEP : 1 / STEP));
  }, { passive: false });
  drag(view);
  begin(graph);
}

function steerAll() {
  for (const graph of document.querySelectorAll("section[data-graph]")) if (!zooms.has(graph)) steer(graph);
}

document.addEventListener("live:changed", () => {
  steerAll();
  const node = document.activeElement?.closest("a.node");
  if (node) enter(node, { focus: false });
});
steerAll();

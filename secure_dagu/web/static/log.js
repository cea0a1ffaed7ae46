// The page of a log: the viewer, told by the run's live updates when its step is over.

import { LogView } from "./logview.js";
import "./operate.js";
import { live } from "./live.js";

const root = document.querySelector("[data-log]");
if (root) {
  const view = new LogView(root);
  view.start().catch((error) => view.say(error.message));
  document.addEventListener("live:changed", () => {
    const status = document.querySelector("#log-status [data-final]");
    if (status?.dataset.final === "true") view.ended();
    else view.changed();
  });
  window.addEventListener("pagehide", () => view.stop());
}

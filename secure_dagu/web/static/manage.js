// Give a definition another file name.

import { call } from "./api.js";

document.querySelector("[data-rename]")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const place = form.querySelector("[data-error]");
  const name = new FormData(form).get("newFileName");
  place.textContent = "";
  try {
    await call("POST", form.dataset.rename, { newFileName: name });
    location.assign(`${form.dataset.to}/${encodeURIComponent(name)}?tab=manage`);
  } catch (error) {
    place.textContent = error.message;
  }
});
